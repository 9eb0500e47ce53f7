import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { loadModel } from "tokenloom";
import { isOneLine, root, tiny, tokenloom } from "./program.js";

const prompt = "Once upon a time there was";
const short = ["--max-tokens", "16"];

t.test("answers a prompt on standard output and nothing else", async (t) => {
  const { code, stdout, stderr } = await tokenloom(["run", tiny, prompt, ...short]);
  t.equal(code, 0);
  t.equal(stderr, "");
  t.match(stdout, /\S.*\n$/s);
});

t.test("the command line gives what the library gives", async (t) => {
  using model = await loadModel(tiny);
  using session = model.session();
  let text = "";
  const ids: number[] = [];
  for await (const piece of session.generate(prompt, { maxTokens: 16 })) {
    text += piece.text;
    ids.push(...piece.tokens);
  }
  const plain = await tokenloom(["run", tiny, prompt, ...short]);
  t.equal(plain.stdout, `${text}\n`);
  const json = JSON.parse((await tokenloom(["run", tiny, prompt, ...short, "--json"])).stdout);
  t.same(Object.keys(json).sort(), ["ids", "promptIds", "stats", "text"]);
  t.equal(json.text, text);
  t.same(json.ids, ids);
  t.same(json.promptIds, model.tokenize(prompt));
  t.equal(json.stats.promptTokens, json.promptIds.length);
  t.equal(json.stats.finishReason, session.stats().finishReason);
});

t.test("reads the prompt from standard input, less its last line break", async (t) => {
  const given = await tokenloom(["run", tiny, prompt, ...short]);
  const piped = await tokenloom(["run", tiny, ...short], { input: `${prompt}\n` });
  t.same(piped, given);
});

t.test("--chat and --system go through the template", async (t) => {
  using model = await loadModel(tiny);
  const { stdout, code } = await tokenloom(["run", tiny, "What is a loom?", "--system", "You are brief.", ...short, "--json"]);
  t.equal(code, 0);
  const rendered = model.applyChatTemplate([{ role: "system", content: "You are brief." }, { role: "user", content: "What is a loom?" }], { addGenerationPrompt: true });
  t.same(JSON.parse(stdout).promptIds, model.tokenize(rendered, { special: true }));
  const chat = JSON.parse((await tokenloom(["run", tiny, "What is a loom?", "--chat", ...short, "--json"])).stdout);
  t.equal(chat.stats.promptTokens, chat.promptIds.length);
});

t.test("sampling options reach the sampler", async (t) => {
  const draw = async (...args: string[]): Promise<{ text: string; ids: number[]; stats: { seed: number; finishReason: string } }> =>
    JSON.parse((await tokenloom(["run", tiny, prompt, "--json", "--max-tokens", "40", ...args])).stdout);
  const warm = ["--temperature", "1.5", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
  const first = await draw(...warm, "--seed", "1");
  t.same((await draw(...warm, "--seed", "1")).ids, first.ids, "same seed, same text");
  t.notSame((await draw(...warm, "--seed", "2")).ids, first.ids, "another seed, another text");
  t.equal(first.stats.seed, 1);
  t.same((await draw("--temperature", "1.5", "--top-k", "1", "--seed", "3")).ids, (await draw()).ids, "the likeliest one is the greedy one");
  const greedy = await draw();
  const words = greedy.text.trim().split(/\s+/);
  const stop = words[2] ?? "";
  t.notMatch((await draw("--stop", "never there", "--stop", stop)).text, stop, "ends before a stop text");
  t.equal((await draw("--stop", stop)).stats.finishReason, "stop");
});

t.test("threads and instruction set", async (t) => {
  const one = await tokenloom(["run", tiny, prompt, ...short, "--threads", "1"]);
  const two = await tokenloom(["run", tiny, prompt, ...short, "--threads", "2"]);
  t.equal(one.stdout, two.stdout);
  const scalar = await tokenloom(["run", tiny, prompt, ...short, "--isa", "scalar"]);
  t.equal(scalar.code, 0);
  const missing = await tokenloom(["run", tiny, prompt, "--isa", process.arch === "x64" ? "neon" : "avx2"]);
  t.equal(missing.code, 2);
  t.match(missing.stderr, /choose one of .*scalar/);
});

t.test("wrong usage: one line, exit code 2", async (t) => {
  const wrong: [string[], RegExp][] = [
    [["run"], /missing required argument 'model'/],
    [["run", tiny, "a", "b"], /too many arguments/],
    [["run", tiny, "a", "--temprature", "1"], /unknown option '--temprature'/],
    [["run", tiny, "a", "--temperature", "hot"], /Expected a number/],
    [["run", tiny, "a", "--max-tokens", "1.5"], /Expected an integer/],
    [["run", tiny, "a", "--isa", "mmx"], /Allowed choices/],
    [["run", tiny, ""], /prompt is empty/],
    [["fly"], /unknown command 'fly'/],
  ];
  for (const [args, message] of wrong) {
    const { code, stdout, stderr } = await tokenloom(args);
    t.equal(code, 2, args.join(" "));
    t.equal(stdout, "");
    t.match(stderr, message);
    t.notMatch(stderr, /^\s+at /m, "no stack");
  }
  const empty = await tokenloom(["run", tiny], { input: "" });
  t.equal(empty.code, 2);
});

t.test("what the library refuses: one line, exit code 1", async (t) => {
  const folder = t.testdir({ "notes.gguf": "This is a text file, not a model.\n", "empty.gguf": "" });
  const refused: [string[], RegExp][] = [
    [["run", join(folder, "absent.gguf"), "a"], /absent\.gguf/],
    [["run", join(folder, "notes.gguf"), "a"], /notes\.gguf/],
    [["run", join(folder, "empty.gguf"), "a"], /empty\.gguf/],
    [["run", tiny, "a", "--temperature", "-1"], /temperature/],
    [["run", tiny, "a", "--threads", "0"], /threads/],
    [["run", tiny, "word ".repeat(3000)], /context/],
  ];
  for (const [args, message] of refused) {
    const { code, stdout, stderr } = await tokenloom([...args, "--offline"]);
    t.equal(code, 1, args.slice(0, 2).join(" "));
    t.equal(stdout.trim(), "");
    t.match(stderr, message);
    t.ok(isOneLine(stderr), `one line: ${stderr}`);
  }
  const verbose = await tokenloom(["run", join(folder, "notes.gguf"), "a", "--verbose"]);
  t.match(verbose.stderr, /^\s+at /m, "--verbose shows the stack");
});

t.test("a reader that goes away is no error", async (t) => {
  const child = spawn(process.execPath, [join(root, "dist/esm/cli/main.js"), "run", tiny, prompt, "--temperature", "1", "--max-tokens", "400"], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => void (stderr += text));
  child.stdout.once("data", () => child.stdout.destroy());
  const [code] = await once(child, "close");
  t.equal(stderr, "");
  t.equal(code, 0);
});

t.test("Ctrl-C ends an answer with exit code 130", { skip: process.platform === "win32" && "no signals" }, async (t) => {
  let sent = 0;
  const { code, signal, stderr } = await tokenloom(["run", tiny, prompt, "--temperature", "1", "--min-p", "0", "--seed", "5"], {
    onOutput: (_output, child) => {
      if (sent === 0) sent = Date.now();
      child.kill("SIGINT");
    },
  });
  t.equal(signal, null);
  t.equal(code, 130);
  t.equal(stderr, "");
  t.ok(Date.now() - sent < 2000, "at once");
});

t.test("ends promptly after the answer", async (t) => {
  let last = 0;
  await tokenloom(["run", tiny, prompt, ...short], { onOutput: () => void (last = Date.now()) });
  t.ok(Date.now() - last < 1000, `${Date.now() - last} ms after the last output`);
});

t.test("a flipped byte in the header never takes the process down", async (t) => {
  const { readFileSync } = await import("node:fs");
  const bytes = readFileSync(tiny);
  const folder = t.testdir({});
  for (const at of [0, 4, 8, 16, 24, 40, 200]) {
    const copy = Buffer.from(bytes);
    copy[at] = (copy[at] ?? 0) ^ 0x80;
    const file = join(folder, `flip-${at}.gguf`);
    writeFileSync(file, copy);
    const { code, signal } = await tokenloom(["run", file, "a", "--max-tokens", "1"]);
    t.equal(signal, null, `byte ${at}`);
    t.ok(code === 0 || code === 1, `byte ${at}: exit code ${code}`);
  }
});

t.test("run with a cache policy and drafts: a smaller cache, the same text", async (t) => {
  const prompt = "One, two, three, one, two, three, one, two, three. ".repeat(6), common = ["run", tiny, prompt, "--max-tokens", "20", "--json"];
  const plain = JSON.parse((await tokenloom(common)).stdout), drafted = JSON.parse((await tokenloom([...common, "--draft", "combine"])).stdout);
  t.equal(drafted.text, plain.text);
  t.ok(drafted.stats.draft.steps > 0);
  for (const policy of ["streaming:64", "h2o:64", "snapkv:30%"]) {
    const { stats } = JSON.parse((await tokenloom([...common, "--cache", policy, "--draft", "combine"])).stdout);
    t.ok(stats.cacheBytes < plain.stats.cacheBytes && stats.evictedTokens > 0, policy);
  }
  const { code, stderr } = await tokenloom(["run", tiny, "x", "--cache", "magic"]);
  t.not(code, 0);
  t.match(stderr, /snapkv:256/);
});
