import type { VerifiedDraft } from "../index.js";
import { escapeXml } from "../svg.js";

const column = 110, line = 18, margin = 12, perRow = 12;

/** What is seen of a token's text: spaces and control characters by signs, long ones cut. */
function label(text: string): string {
  const shown = text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\p{C}/gu, "□");
  return escapeXml(shown.length > perRow ? `${shown.slice(0, perRow - 1)}…` : shown);
}

/** Lines of each node, leaves from top to bottom: a parent stands beside its first child. */
function rowsOf(parents: Int32Array): { rows: Int32Array; count: number } {
  const children: number[][] = Array.from(parents, () => []), rows = new Int32Array(parents.length);
  for (let i = 1; i < parents.length; i++) children[parents[i]!]!.push(i);
  let count = 0;
  const place = (node: number): void => {
    rows[node] = count;
    children[node]!.forEach((child, i) => {
      if (i > 0) count++;
      place(child);
    });
  };
  place(0);
  return { rows, count: count + 1 };
}

/** The trees of a generation, one below the other: accepted nodes filled, and behind each tree the token drawn last. */
export function drawDrafts(drafts: readonly VerifiedDraft[], textOf: (token: number) => string, title: string): string {
  const parts: string[] = [];
  let top = margin + 2 * line, width = 400;
  for (const [step, { tree, path, accepted }] of drafts.entries()) {
    const { rows, count } = rowsOf(tree.parents), kept = new Set(path);
    const x = (node: number): number => margin + 40 + tree.depths[node]! * column, y = (node: number): number => top + rows[node]! * line;
    parts.push(`<text x="${margin}" y="${top + 4}" class="step">${step + 1}</text>`);
    for (let i = 1; i < tree.size; i++) {
      const parent = tree.parents[i]!;
      parts.push(`<path d="M${x(parent) + column - 22} ${y(parent)}H${x(i) - 12}V${y(i)}H${x(i) - 4}" class="${kept.has(i) ? "kept" : "edge"}"/>`);
    }
    for (let i = 0; i < tree.size; i++) {
      parts.push(`<rect x="${x(i) - 4}" y="${y(i) - 8}" width="${column - 18}" height="15" rx="3" class="${kept.has(i) ? "kept" : "node"}"><title>probability ${tree.probabilities[i]!.toFixed(3)}</title></rect>`);
      parts.push(`<text x="${x(i)}" y="${y(i) + 4}">${label(textOf(tree.tokens[i]!))}</text>`);
    }
    const last = path.at(-1)!;
    parts.push(`<text x="${x(last) + column - 18}" y="${y(last) + 4}" class="drawn">${label(textOf(accepted.at(-1)!))}</text>`);
    width = Math.max(width, ...Array.from(tree.depths, (depth) => margin + 40 + (depth + 2) * column));
    top += (count + 1) * line;
  }
  const style =
    "text{font:11px monospace;fill:#222}.step{fill:#888}.drawn{fill:#0a6640;font-weight:bold}rect.node{fill:#eee;stroke:#bbb}rect.kept{fill:#bfe8d2;stroke:#0a6640}path{fill:none;stroke:#bbb}path.kept{stroke:#0a6640;stroke-width:2}";
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${top}" width="${width}" height="${top}" role="img" aria-label="${escapeXml(title)}"><style>${style}</style><text x="${margin}" y="${margin + 8}">${escapeXml(title)}</text>${parts.join("")}</svg>\n`;
}
