// onnxruntime-node, from the folder TOKENLOOM_PEERS: messages { model, threads, feeds } in, { seconds, coreSeconds } or { error } out.
import { createRequire } from "node:module";
import { join } from "node:path";

const sessions = new Map();
const ort = createRequire(join(process.env.TOKENLOOM_PEERS ?? process.cwd(), "package.json"))("onnxruntime-node");

async function run({ model, threads, feeds }) {
  const key = `${threads} ${model}`;
  if (!sessions.has(key)) sessions.set(key, await ort.InferenceSession.create(model, { intraOpNumThreads: threads, interOpNumThreads: 1, graphOptimizationLevel: "all", logSeverityLevel: 3 }));
  const tensors = Object.fromEntries(Object.entries(feeds).map(([name, { type, data, dims }]) => [name, new ort.Tensor(type, type === "int64" ? BigInt64Array.from(data, BigInt) : Float32Array.from(data), dims)]));
  const used = process.cpuUsage(), began = performance.now();
  await sessions.get(key).run(tensors);
  const { user, system } = process.cpuUsage(used);
  return { seconds: (performance.now() - began) / 1e3, coreSeconds: (user + system) / 1e6 };
}

process.send({ version: createRequire(join(process.env.TOKENLOOM_PEERS ?? process.cwd(), "package.json"))("onnxruntime-node/package.json").version });
process.on("message", (request) => void run(request).catch((error) => ({ error: error.message })).then((answer) => process.send(answer)));
