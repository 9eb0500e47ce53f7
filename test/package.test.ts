import { execFile } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import t from "tap";
import * as esm from "tokenloom";

const run = promisify(execFile);
const require = createRequire(import.meta.url);

t.test("import and require give the same names", (t) => {
  const cjs = require("tokenloom") as Record<string, unknown>;
  t.same(Object.keys(cjs).filter((name) => name !== "__esModule").sort(), Object.keys(esm).sort());
  t.end();
});

t.test("required from CommonJS, a model answers", async (t) => {
  const code = `
    const { loadModel } = require("tokenloom");
    (async () => {
      const model = await loadModel("tiny"), session = model.session();
      let tokens = 0;
      for await (const piece of session.generate("Once", { maxTokens: 5 })) tokens += piece.tokens.length;
      console.log(tokens);
    })();`;
  const { stdout } = await run(process.execPath, ["-e", code], { cwd: fileURLToPath(new URL("../..", import.meta.url)) });
  t.equal(stdout.trim(), "5");
});

t.test("in worker threads, several at once, ended in the middle", async (t) => {
  const code = `
    const { Worker, isMainThread, parentPort } = require("node:worker_threads");
    if (isMainThread) {
      (async () => {
        for (let round = 0; round < 4; round++) {
          const workers = Array.from({ length: 3 }, () => new Worker(__filename));
          await Promise.all(workers.map((worker) => new Promise((resolve, reject) => { worker.once("message", resolve); worker.once("error", reject); })));
          await Promise.all(workers.map((worker) => worker.terminate()));
        }
        const { memory } = require("tokenloom");
        console.log("alive", memory().weights);
      })();
    } else {
      const { loadModel } = require("tokenloom");
      (async () => {
        const model = await loadModel("tiny");
        for (;;) {
          const session = model.session();
          for await (const piece of session.generate("Once upon a time", { maxTokens: 50 })) parentPort.postMessage(piece.text);
          session.dispose();
        }
      })();
    }`;
  const { writeFile, rm } = await import("node:fs/promises");
  const path = fileURLToPath(new URL("../worker-test.cjs", import.meta.url));
  await writeFile(path, code);
  try {
    const { stdout } = await run(process.execPath, [path], { timeout: 60_000 });
    t.match(stdout.trim(), /^alive 0$/);
  } finally {
    await rm(path);
  }
});

t.test("the process exits in mid-generation without a complaint", async (t) => {
  const code = `
    const { loadModel } = require("tokenloom");
    (async () => {
      const session = (await loadModel("tiny")).session();
      let seen = 0;
      for await (const piece of session.generate("Once upon a time")) if (++seen === 3) setImmediate(() => process.exit(0));
    })();`;
  for (let i = 0; i < 5; i++) {
    const { stderr } = await run(process.execPath, ["-e", code], { cwd: fileURLToPath(new URL("../..", import.meta.url)) });
    t.equal(stderr, "");
  }
});
