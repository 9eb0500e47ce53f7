import { statSync } from "node:fs";
import t from "tap";
import { loadModel, systemInfo } from "tokenloom";
import { tiny, tokenloom } from "./program.js";

t.test("info describes a model", async (t) => {
  using model = await loadModel(tiny);
  const json = JSON.parse((await tokenloom(["info", tiny, "--json"])).stdout);
  t.equal(json.format, "gguf");
  t.equal(json.config.layers, model.config.layers.length);
  t.equal(json.config.vocabulary, model.config.vocabulary);
  t.equal(json.chatTemplate, model.chatTemplate);
  t.ok(json.memory.weights < statSync(tiny).size);
  t.equal(json.tensors.reduce((sum: number, group: { bytes: number }) => sum + group.bytes, 0), json.memory.weights);
  const { stdout, code } = await tokenloom(["info", tiny]);
  t.equal(code, 0);
  for (const word of ["architecture", "layers", "attention", "context", "tokenizer", "chat template", "memory", "parameters"]) t.match(stdout, word);
  t.match(stdout, /^f32 +\d+ +\d+ +\d+$/m, "a row for each storage type");
});

t.test("info --devices", async (t) => {
  const { isa, availableIsas, cores, cuda } = systemInfo();
  t.same(JSON.parse((await tokenloom(["info", "--devices", "--json"])).stdout), { cpu: { isa, availableIsas, cores }, cuda });
  t.match((await tokenloom(["info", "--devices"])).stdout, cuda.available ? /cuda {2}\S/ : /cuda {2}off: .*library/);
  t.equal((await tokenloom(["info"])).code, 2, "a model or --devices");
});

t.test("bench", async (t) => {
  const args = ["bench", tiny, "--prompt-tokens", "64", "--tokens", "8", "--context", "200", "--runs", "1", "--threads", "1"];
  const { stdout, stderr, code } = await tokenloom([...args, "--json"]);
  t.equal(code, 0);
  t.equal(stderr, "");
  const json = JSON.parse(stdout);
  for (const name of ["promptTokensPerSecond", "decodeTokensPerSecond", "decodeAfterContextTokensPerSecond", "loadMs", "peakRssBytes"]) t.ok(json[name] > 0, name);
  t.equal(json.threads, 1);
  t.equal(json.isa, systemInfo().isa);
  t.match((await tokenloom(args)).stdout, /prompt of 64 tokens +\d/);
  t.equal((await tokenloom(["bench", tiny, "--tokens", "0"])).code, 2);
});

t.test("help and version", async (t) => {
  const help = await tokenloom(["--help"]);
  t.equal(help.code, 0);
  for (const command of ["run", "info", "score", "bench"]) t.match(help.stdout, new RegExp(`^  ${command} `, "m"));
  t.match((await tokenloom(["--version"])).stdout, /^\d+\.\d+\.\d+\n$/);
});
