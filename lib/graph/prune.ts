import type { Graph, Node } from "./graph.js";

/** An op without outputs changes a cache; one that writes a binding changes what the caller sees. */
function hasEffect({ views, inputs }: Node): boolean {
  const outputs = views.slice(inputs).filter((view) => view !== undefined);
  return outputs.length === 0 || outputs.some(({ storage }) => storage.kind !== "arena");
}

/**
 * The ops of a graph that something comes of, in their order: those with an effect and those that write what such an op reads.
 * So a prompt's pieces need no last feed-forward, of which only the cache's keys and values are wanted.
 */
export function liveNodes(graph: Graph): readonly Node[] {
  const read = new Set<number>();
  const live: Node[] = [];
  for (let index = graph.nodes.length - 1; index >= 0; index--) {
    const node = graph.nodes[index]!, { views, inputs } = node;
    const wanted = hasEffect(node) || views.slice(inputs).some((view) => view?.storage.kind === "arena" && read.has(view.storage.id));
    if (!wanted) continue;
    for (const view of views.slice(0, inputs)) if (view?.storage.kind === "arena") read.add(view.storage.id);
    live.push(node);
  }
  return live.reverse();
}
