// Ratios to the peers as bars, in SVG that follows the reader's light or dark colours.
import { kindOf, ratiosOf } from "./ratios.mjs";

const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** One bar a ratio, a line at 1×; undefined where the results have none. Bars beyond 12× are cut, their numbers are not. */
export function ratioChart(results) {
  const ratios = [...ratiosOf(results)];
  if (ratios.length === 0) return undefined;
  const left = 430, width = 760, row = 20, top = 34, most = Math.min(12, Math.max(2, ...ratios.map(([, ratio]) => ratio))), scale = (width - left - 60) / most;
  const bars = ratios.map(([name, ratio], i) => {
    const y = top + i * row, length = Math.min(ratio, most) * scale;
    return `<text x="${left - 8}" y="${y + 13}" text-anchor="end">${escape(name)}</text><rect x="${left}" y="${y + 3}" width="${length.toFixed(1)}" height="13" class="${ratio < 1 ? "less" : "more"}"/><text x="${(left + length + 5).toFixed(1)}" y="${y + 13}">${ratio.toFixed(2)}×</text>`;
  });
  const height = top + ratios.length * row + 8, one = (left + scale).toFixed(1);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui,sans-serif" font-size="11">
<style>text{fill:#24292f}.more{fill:#2f81a8}.less{fill:#c4632f}line{stroke:#8c959f;stroke-dasharray:3 3}@media(prefers-color-scheme:dark){text{fill:#d0d7de}}</style>
<text x="8" y="16" font-size="12">times as fast as the peer: ${escape(kindOf(results))}${results.commit ? `, ${escape(results.commit)}` : ""}</text>
${bars.join("\n")}
<line x1="${one}" y1="${top}" x2="${one}" y2="${height - 8}"/>
</svg>
`;
}
