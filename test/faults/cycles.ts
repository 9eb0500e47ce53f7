/** Many lives of tensors, graphs, sessions and models in one process: `cycles.js KIND COUNT`, run with --expose-gc. Prints how the process grew. */
import { loadModel, memory, ops, snapKV, tensor, zeros } from "tokenloom";
import { Graph } from "#lib/graph/graph.js";
import { compile } from "#lib/graph/compile.js";
import { activation } from "#lib/ops/activation.js";
import { read } from "./sessions.js";

const [kind, count] = [process.argv[2]!, Number(process.argv[3])], dropped = kind.startsWith("dropped");
const model = await loadModel("tiny");

function graph(): { dispose(): void } {
  const made = new Graph("cycle"), x = made.binding("x", "f32", [8, 16]);
  made.output("y", activation(x, "tanh"));
  return compile(made);
}

const life: Record<string, () => unknown> = {
  tensors: () => zeros([64, 64]),
  graphs: graph,
  sessions: () => model.session({ cache: snapKV({ budget: 8, window: 4 }) }),
  ops: async () => ops.softmax(tensor(new Float32Array(64), [4, 16])).then(({ out }) => out),
  generations: async () => {
    const session = model.session();
    await read(session, "Once", { maxTokens: 2 });
    return session;
  },
  models: async () => {
    const other = await loadModel("tiny"), session = other.session();
    await read(session, "Once", { maxTokens: 2 });
    session.dispose();
    return other;
  },
};

/** Until no more handles than these are left, nor more bytes of tensors; a few times at least. */
async function collect(handles: number, tensors: number): Promise<void> {
  for (let i = 0; i < 200 && (i < 2 || memory().handles > handles || memory().tensors > tensors); i++) {
    globalThis.gc!();
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** In a function of its own: what it made is out of reach when it is done. */
async function once(): Promise<void> {
  const made = (await life[kind.replace("dropped-", "")]!()) as { dispose(): void };
  if (!dropped) made.dispose();
}

async function live(times: number): Promise<void> {
  for (let i = 0; i < times; i++) {
    await once();
    if (i % 100 === 99) await collect(start.handles + 5, Infinity);
  }
  await collect(start.handles, start.tensors);
}

// What stays for good: the model's graphs, and those that single ops are kept as.
await read(model.session(), "Once", { maxTokens: 2 });
await life["ops"]!();
for (let i = 0; i < 5; i++) await collect(Infinity, Infinity);
const start = memory();
await live(kind.endsWith("models") ? count : Math.max(20, count / 4)); // what the process and its allocator need once
const first = process.memoryUsage(), { rss: before } = first;
await live(count);
const { rss: after } = process.memoryUsage(), end = memory();
if (process.env["VERBOSE"]) console.error(first, process.memoryUsage());
console.log(JSON.stringify({ grownKiB: Math.round((after - before) / 1024), handles: end.handles - start.handles, weights: end.weights - start.weights, cache: end.cache - start.cache, tensors: end.tensors - start.tensors }));
