import { escapeXml } from "../svg.js";

const left = 56, top = 40, rowHeight = 6, layerGap = 4, width = 900;

/** Runs of neighbouring positions: [first, count]. */
function runs(positions: Int32Array): [number, number][] {
  const found: [number, number][] = [];
  for (const position of positions) {
    const last = found.at(-1);
    if (last && last[0] + last[1] === position) last[1]++;
    else found.push([position, 1]);
  }
  return found;
}

/** One line a layer and head, one column a token: what is filled is still in the cache. */
export function drawCache(kept: readonly (readonly Int32Array[])[], tokens: number, title: string): string {
  const heads = kept[0]?.length ?? 0, layerHeight = heads * rowHeight + layerGap, height = top + kept.length * layerHeight + 24, unit = width / Math.max(1, tokens);
  const parts: string[] = [];
  for (const [layer, perHead] of kept.entries()) {
    const y = top + layer * layerHeight;
    parts.push(`<text x="${left - 6}" y="${y + (layerHeight + 4) / 2}" text-anchor="end">${layer}</text>`);
    for (const [head, positions] of perHead.entries()) {
      parts.push(`<rect x="${left}" y="${y + head * rowHeight}" width="${width}" height="${rowHeight - 1}" class="gone"><title>layer ${layer}, head ${head}: ${positions.length} of ${tokens} tokens</title></rect>`);
      const path = runs(positions).map(([first, count]) => `M${(left + first * unit).toFixed(2)} ${y + head * rowHeight}h${(count * unit).toFixed(2)}v${rowHeight - 1}h${(-count * unit).toFixed(2)}z`);
      parts.push(`<path d="${path.join("")}"/>`);
    }
  }
  const axis = [0, 0.25, 0.5, 0.75, 1].map((share) => `<text x="${(left + share * width).toFixed(1)}" y="${height - 8}" text-anchor="middle">${Math.round(share * tokens)}</text>`);
  const style = "text{font:11px sans-serif;fill:#222}rect.gone{fill:#eee}path{fill:#0a6640}";
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${left + width + 24} ${height}" width="${left + width + 24}" height="${height}" role="img" aria-label="${escapeXml(title)}"><style>${style}</style><text x="${left}" y="16">${escapeXml(title)}</text><text x="${left}" y="32">rows: layers from 0, their heads below one another; columns: tokens of the prompt</text>${parts.join("")}${axis.join("")}</svg>\n`;
}
