import { PassThrough } from "node:stream";
import t from "tap";
import { loadModel, type LanguageModel } from "#lib/index.js";
import { chat } from "#lib/cli/chat.js";
import { tiny } from "./program.js";

/** A conversation over streams that pose as a terminal: `type` writes, `seen` is what was shown. */
function converse(model: LanguageModel, maxTokens: number): { type: (text: string) => void; until: (pattern: RegExp) => Promise<void>; ended: Promise<void>; shown: () => string } {
  const input = new PassThrough();
  const output = new PassThrough();
  let shown = "";
  output.setEncoding("utf8").on("data", (text: string) => void (shown += text));
  const until = async (pattern: RegExp): Promise<void> => {
    while (!pattern.test(shown)) await new Promise((resolve) => setTimeout(resolve, 5));
    shown = shown.replace(pattern, "");
  };
  const ended = chat(model, { input, output, options: { maxTokens }, terminal: true });
  return { type: (text) => void input.write(text), until, ended, shown: () => shown };
}

t.test("chat", async (t) => {
  const model = await loadModel(tiny);
  t.teardown(() => model.dispose());

  await t.test("answers lines until /exit", async (t) => {
    const { type, until, ended, shown } = converse(model, 8);
    await until(/\/exit leaves[^]*> /);
    type("What is a loom?\r");
    await until(/What is a loom\?[^]*\n[^]*\S[^]*> /);
    type("/nonsense\r");
    await until(/\/exit leaves[^]*> /);
    type("/reset\r");
    await until(/\/reset[^]*> /);
    type("/exit\r");
    await ended;
    t.notMatch(shown(), /Error/);
  });

  await t.test("Ctrl-C stops an answer, a second one leaves", async (t) => {
    const { type, until, ended } = converse(model, 5000);
    await until(/> /);
    type("Tell me a long story.\r");
    await until(/story\.[^]*\n[^]*[a-z]{2}/);
    type("\x03");
    await until(/\n[^]*> /);
    t.pass("the prompt is back");
    type("\x03");
    await ended;
  });

  await t.test("the end of input leaves", async () => {
    const input = new PassThrough();
    const output = new PassThrough();
    output.resume();
    input.end("Hello\n");
    await chat(model, { input, output, options: { maxTokens: 4 }, terminal: false });
  });
});
