/** Which processor, instruction set and threads a result file tells of. */
export const kindOf = ({ machine, isa, threads }) => [typeof machine === "string" ? machine : machine?.cpu, isa, threads && `${threads} threads`].filter(Boolean).join(", ");

/** Name of a row → how many times as fast as its peer, for every row of a result file that has a peer. */
export function ratiosOf(results) {
  const found = new Map();
  for (const row of Array.isArray(results.rows) ? results.rows : []) {
    const name = [row.title, row.name, row.how, row.data, row.tokens && `${row.tokens} tokens`, row.threads && `${row.threads} threads`].filter(Boolean).join(", ");
    const add = (peer, ratio) => ratio > 0 && Number.isFinite(ratio) && found.set(peer ? `${name}, of ${peer}` : name, ratio);
    if (row["node-llama-cpp"]) add("node-llama-cpp", row.tokenloom.tokensPerSecond / row["node-llama-cpp"].tokensPerSecond);
    if (row.ratio !== undefined) add("", Number.parseFloat(row.ratio));
    for (const [key, peer] of [["ofOnnxruntime", "onnxruntime"], ["ofPytorch", "PyTorch"]]) if (row[key]) add(peer, row[key]);
  }
  return found;
}
