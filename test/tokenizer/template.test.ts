import { readFileSync } from "node:fs";
import t from "tap";
import { openModel } from "#lib/models/open.js";
import { chatTemplateOf, renderChat, type ChatMessage } from "#lib/tokenizer/template.js";
import { writeGguf } from "../support/gguf-writer.js";
import { modelPath, scratch, sharedFile, skipWithout, SMOLLM2 } from "../support/paths.js";
import { writeSafetensors } from "../support/safetensors-writer.js";

const turns: ChatMessage[] = [{ role: "user", content: "Hi\nthere " }, { role: "assistant", content: "Yes?" }];
const chatml = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}\n    {% if add_generation_prompt %}\n<assistant>{% endif %}";

t.test("renders as Jinja with trimmed blocks", async (t) => {
  t.equal(renderChat(chatml, turns, { bosToken: "^", eosToken: "$" }), "^<user>Hi\nthere$\n<assistant>Yes?$\n");
  t.equal(renderChat(chatml, turns.slice(0, 1), { addGenerationPrompt: true }), "<user>Hi\nthere\n<assistant>");
  t.equal(renderChat("{% if tools %}{{ tools | length }}{% else %}none{% endif %} {{ enable }}", [], { tools: [{}, {}], variables: { enable: true } }), "2 true");
  t.match(renderChat("{{ strftime_now('%d %b %Y %j %%') }}", []), /^\d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d{3} %$/);
});

t.test("typed errors", async (t) => {
  t.throws(() => renderChat("{{ raise_exception('roles must alternate') }}", turns), { name: "ArgumentError", argument: "messages", message: /roles must alternate/ });
  t.throws(() => renderChat("{% for %}", turns), { name: "ModelFormatError", message: /cannot be parsed/ });
  t.throws(() => renderChat("{{ messages.foo() }}", turns), { name: "ModelFormatError", message: /it fails/ });
  t.throws(() => renderChat("{% for i in range(1000000000) %}x{% endfor %}", turns), { name: "ModelFormatError", message: /range/ });
  t.throws(() => renderChat("x".repeat((1 << 20) + 1), turns), { name: "ModelFormatError", message: /at most/ });
  t.throws(() => renderChat(chatml, "hi" as never), { name: "ArgumentError", message: /an array of \{ role, content \} for messages/ });
  t.throws(() => renderChat(chatml, [{ role: "user" } as never]), { name: "ArgumentError", message: /a string for messages\[0\]\.content/ });
  t.throws(() => renderChat(chatml, [null as never]), { name: "ArgumentError", message: /messages\[0\]\.role/ });
  t.throws(() => renderChat(3 as never, turns), { name: "ArgumentError" });
});

t.test("where templates are found", async (t) => {
  const { write, path } = scratch(t);
  t.equal(await chatTemplateOf(await openModel(write("a.gguf", writeGguf({ metadata: { "tokenizer.chat_template": chatml } })))), chatml);
  t.equal(await chatTemplateOf(await openModel(write("b.gguf", writeGguf({})))), undefined);
  await t.rejects(chatTemplateOf(await openModel(write("c.gguf", writeGguf({ metadata: { "tokenizer.chat_template": 3 } })))), { name: "ModelFormatError" });
  write("m/model.safetensors", writeSafetensors([]));
  const model = await openModel(`${path}/m`);
  t.equal(await chatTemplateOf(model), undefined);
  write("m/tokenizer_config.json", JSON.stringify({ chat_template: [{ name: "tools", template: "T" }, { name: "default", template: "D" }], model_max_length: 1e30 }));
  t.equal(await chatTemplateOf(model), "D");
  write("m/tokenizer_config.json", JSON.stringify({ chat_template: "S" }));
  t.equal(await chatTemplateOf(model), "S");
  write("m/tokenizer_config.json", JSON.stringify({ chat_template: 5 }));
  await t.rejects(chatTemplateOf(model), { name: "ModelFormatError", message: /chat_template/ });
  write("m/chat_template.jinja", "J");
  t.equal(await chatTemplateOf(model), "J");
});

const smollm2 = modelPath(SMOLLM2), oracle = sharedFile("oracles", "smollm2", "smollm2.json");
t.test("SmolLM2's template, as transformers renders it", { skip: skipWithout({ [SMOLLM2]: smollm2, "shared/oracles": oracle }) }, async (t) => {
  const template = await chatTemplateOf(await openModel(smollm2!));
  const { chat } = JSON.parse(readFileSync(oracle!, "utf8")) as { chat: { messages: ChatMessage[]; rendered: string }[] };
  for (const { messages, rendered } of chat) t.equal(renderChat(template!, messages, { addGenerationPrompt: true }), rendered);
});
