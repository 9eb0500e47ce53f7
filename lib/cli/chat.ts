import { createInterface, type Interface } from "node:readline";
import type { ChatMessage, GenerateOptions, LanguageModel, Session, SessionOptions } from "../index.js";
import { isAbort, write } from "./terminal.js";

export interface ChatOptions {
  readonly input: NodeJS.ReadableStream;
  readonly output: NodeJS.WritableStream;
  readonly system?: string | undefined;
  readonly options?: GenerateOptions;
  /** Of the session that the conversation runs in. */
  readonly session?: SessionOptions;
  /** Whether the streams are a terminal; by default what `output` says. */
  readonly terminal?: boolean;
}

const help = "/exit leaves, /reset forgets the conversation, Ctrl-C stops an answer\n";

/** A conversation line by line until /exit, end of input, or Ctrl-C while no answer is being written. */
export async function chat(model: LanguageModel, { input, output, system, options = {}, session: sessionOptions = {}, terminal }: ChatOptions): Promise<void> {
  using session = model.session(sessionOptions);
  const begin = (): ChatMessage[] => (system === undefined ? [] : [{ role: "system", content: system }]);
  let messages = begin();
  let answering: AbortController | undefined;
  const lines = createInterface({ input, output, prompt: "> ", ...(terminal === undefined ? {} : { terminal }) });
  lines.on("SIGINT", () => {
    if (answering === undefined || answering.signal.aborted) lines.close();
    else answering.abort();
  });
  await write(output, help);
  lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    if (text === "/exit" || text === "/quit") break;
    if (text === "/reset") {
      messages = begin();
      session.reset();
    } else if (text.startsWith("/")) await write(output, help);
    else if (text !== "") {
      answering = new AbortController();
      const reply = await answerTo([...messages, { role: "user", content: text }], session, { ...options, signal: answering.signal }, output);
      if (reply !== undefined) messages = [...messages, { role: "user", content: text }, { role: "assistant", content: reply }];
      answering = undefined;
    }
    if (isClosed(lines)) break;
    lines.prompt();
  }
  lines.close();
}

function isClosed(lines: Interface): boolean {
  return (lines as Interface & { closed?: boolean }).closed === true;
}

/** Writes the answer as it comes; undefined where the model gave an error, which is shown and does not end the conversation. */
async function answerTo(messages: ChatMessage[], session: Session, options: GenerateOptions, output: NodeJS.WritableStream): Promise<string | undefined> {
  let text = "";
  try {
    for await (const piece of session.generate(messages, options)) {
      text += piece.text;
      await write(output, piece.text);
    }
  } catch (error) {
    if (!isAbort(error)) {
      await write(output, `${error instanceof Error ? error.message : String(error)}\n`);
      return undefined;
    }
  }
  await write(output, "\n");
  return text;
}
