/** Workers that are ended in the middle, in a process whose main thread has not loaded the addon: `workers.js TERMINATE EXIT AT_ONCE`. */
import { Worker } from "node:worker_threads";
import { scriptPath } from "./support.js";

const [terminated, exited, atOnce] = process.argv.slice(2).map(Number) as [number, number, number];
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

function start(what: string): { worker: Worker; runs: Promise<void>; ended: Promise<unknown> } {
  const worker = new Worker(scriptPath("worker"), { workerData: { what } });
  const ended = new Promise((resolve) => {
    worker.once("exit", resolve);
    worker.once("error", () => undefined); // those that throw on purpose
  });
  const runs = new Promise<void>((resolve) => {
    worker.once("message", () => resolve());
    void ended.then(() => resolve());
  });
  return { worker, runs, ended };
}

let done = 0;
async function terminate(i: number): Promise<void> {
  const { worker, runs, ended } = start(i % 4 === 3 ? "ops" : i % 4 === 2 ? "load" : "generate");
  await runs;
  if (i % 3 > 0) await pause((i * 7) % 23);
  await worker.terminate();
  await ended;
  done++;
}
for (let i = 0; i < terminated; i += atOnce) await Promise.all(Array.from({ length: Math.min(atOnce, terminated - i) }, (_, k) => terminate(i + k)));
for (let i = 0; i < exited; i++) {
  await start(i % 2 === 0 ? "exit" : "throw").ended;
  done++;
}
console.log(`ended ${done}`);
