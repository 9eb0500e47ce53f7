import type { Graph, Node } from "./graph.js";

/** Where one arena value lies, and from which op to which. */
export interface Placement {
  readonly id: number;
  readonly name: string;
  readonly bytes: number;
  readonly offset: number;
  readonly first: number;
  readonly last: number;
}

export interface ArenaPlan {
  readonly bytes: number;
  readonly placements: readonly Placement[];
}

const alignment = 64;
const align = (bytes: number): number => Math.ceil(bytes / alignment) * alignment;

interface Range {
  first: number;
  last: number;
  bytes: number;
}

/** Values placed between two looks at the clock. */
const stepValues = 16;

function liveRanges(nodes: readonly Node[]): Map<number, Range> {
  const ranges = new Map<number, Range>();
  nodes.forEach((node, index) => {
    for (const view of node.views) {
      if (view?.storage.kind !== "arena") continue;
      const range = ranges.get(view.storage.id);
      if (range) range.last = index;
      else ranges.set(view.storage.id, { first: index, last: index, bytes: align(view.storage.bytes) });
    }
  });
  return ranges;
}

/** Storages that may share one place because the second overwrites the first where that ends: id → representative's id. */
function mergeInPlace(graph: Graph, nodes: readonly Node[], ranges: Map<number, Range>): Map<number, number> {
  const representative = new Map<number, number>();
  const find = (id: number): number => {
    const next = representative.get(id);
    return next === undefined ? id : find(next);
  };
  nodes.forEach((node, index) => {
    if (!node.mayOverwrite) return;
    const [output, input] = node.mayOverwrite.map(find) as [number, number];
    const from = ranges.get(input), to = ranges.get(output);
    if (output === input || !from || !to || from.last !== index || to.first !== index || to.bytes > from.bytes) return;
    from.last = to.last;
    ranges.delete(output);
    representative.set(output, input);
  });
  return new Map(graph.storages.map(({ id }) => [id, find(id)]));
}

interface Placed {
  readonly id: number;
  readonly range: Range;
  readonly offset: number;
}

/** Where `range` goes among those placed, which lie in order of their offsets: the smallest gap that stays free during its life. */
function bestFit(placed: readonly Placed[], range: Range): number {
  let best = -1, bestGap = Infinity, end = 0;
  for (let index = 0; index < placed.length; index++) {
    const { range: other, offset } = placed[index]!;
    if (other.first > range.last || range.first > other.last) continue;
    const gap = offset - end;
    if (gap >= range.bytes && gap < bestGap) {
      best = end;
      bestGap = gap;
    }
    end = Math.max(end, offset + other.bytes);
  }
  return best >= 0 ? best : end;
}

/** The index of the first of those placed that lies behind `offset`. */
function firstBehind(placed: readonly Placed[], offset: number): number {
  let low = 0, high = placed.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (placed[middle]!.offset <= offset) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Best fit over live ranges: the largest values first, each into the smallest gap that stays free during its life.
 * Values whose lives do not overlap share bytes. Yields between short steps.
 */
export function* planArena(graph: Graph, nodes: readonly Node[]): Generator<void, ArenaPlan> {
  const ranges = liveRanges(nodes);
  yield;
  const representative = mergeInPlace(graph, nodes, ranges);
  yield;
  const placed: Placed[] = [];
  const order = [...ranges].sort(([a, x], [b, y]) => y.bytes - x.bytes || x.first - y.first || a - b);
  for (const [index, [id, range]] of order.entries()) {
    if (index % stepValues === 0) yield;
    const offset = bestFit(placed, range);
    placed.splice(firstBehind(placed, offset), 0, { id, range, offset });
  }
  yield;
  const places = new Map(placed.map((place) => [place.id, place]));
  const placements = graph.storages.flatMap(({ id, name, bytes }) => {
    const place = places.get(representative.get(id) ?? id);
    return place ? [{ id, name, bytes, offset: place.offset, first: place.range.first, last: place.range.last }] : [];
  });
  return { bytes: placed.reduce((most, { range, offset }) => Math.max(most, offset + range.bytes), 0), placements };
}
