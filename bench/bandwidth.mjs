// How fast this machine reads memory: memchr (what Buffer.indexOf calls) over buffers that no cache holds.
// As a program: prints bytes a second for one and for all cores. As a worker: measures one core.
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";

const file = fileURLToPath(import.meta.url);
const bytes = 256 << 20;

/** Bytes a second that `threads` cores read together, best of `rounds`. */
export async function readBandwidth(threads, rounds = 5) {
  const shared = new Int32Array(new SharedArrayBuffer(4));
  const workers = Array.from({ length: threads }, () => new Worker(file, { workerData: { shared, threads, rounds } }));
  const spans = await Promise.all(workers.map((worker) => new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject))));
  const rates = Array.from({ length: rounds }, (_, round) => {
    const began = Math.min(...spans.map((span) => span[round][0]));
    const ended = Math.max(...spans.map((span) => span[round][1]));
    return (threads * bytes) / ((ended - began) / 1e3);
  });
  return Math.max(...rates);
}

/** One core: all workers begin each round together. */
function measure({ shared, threads, rounds }) {
  const buffer = Buffer.alloc(bytes, 1);
  const spans = [];
  for (let round = 0; round < rounds; round++) {
    Atomics.add(shared, 0, 1);
    while (Atomics.load(shared, 0) < threads * (round + 1)) continue;
    const began = performance.timeOrigin + performance.now();
    if (buffer.indexOf(0) !== -1) throw new Error("the buffer holds no zero");
    spans.push([began, performance.timeOrigin + performance.now()]);
  }
  parentPort.postMessage(spans);
}

if (!isMainThread && workerData?.shared) measure(workerData);
else if (process.argv[1] === file) {
  for (const threads of new Set([1, availableParallelism()])) console.log(`${threads} cores read ${((await readBandwidth(threads)) / 1e9).toFixed(1)} GB/s`);
}
