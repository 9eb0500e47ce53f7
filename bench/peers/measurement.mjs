// The child's side of a measurement: load, one prompt, `tokens` tokens, and what it cost. All peers run through this.
import { monitorEventLoopDelay } from "node:perf_hooks";
import { peakMemoryBytes } from "#lib/cli/peak-memory.js";

/** Ids spread over the vocabulary: what they say does not matter to the time they take. */
export function prompt(length, vocabulary) {
  const first = Math.floor(vocabulary / 8);
  return Array.from({ length }, (_, index) => first + ((index * 37) % (vocabulary - 2 * first)));
}

/**
 * @param open makes `{ load(), prepare(loaded), generate(prepared, ids, tokens, onToken) }` from the request
 *   `{ model, threads, promptTokens, tokens, contextTokens }`, which comes as JSON in argv; the answer goes to the parent as a message.
 */
export async function measureInChild(open) {
  const request = JSON.parse(process.argv[2]);
  const peer = await open(request);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const began = performance.now();
  const loaded = await peer.load();
  const loadMs = performance.now() - began;
  const ids = prompt(request.promptTokens, loaded.vocabulary);
  const prepared = await peer.prepare(loaded);
  const times = [];
  const started = performance.now();
  await peer.generate(prepared, ids, request.tokens + 1, () => times.push(performance.now()));
  delay.disable();
  // The first token comes with the prompt; the steps after it are counted from there.
  const [first] = times;
  const steps = times.length - 1;
  process.send(
    {
      loadMs,
      promptTokensPerSecond: (request.promptTokens / (first - started)) * 1e3,
      decodeTokensPerSecond: steps > 0 ? (steps / (times.at(-1) - first)) * 1e3 : undefined,
      peakBytes: peakMemoryBytes(),
      eventLoopDelayMs: delay.max / 1e6,
      weightBytes: loaded.weightBytes,
      isa: loaded.isa,
    },
    () => process.exit(0),
  );
}
