import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** A peer in Python: a program of bench/peers that answers each line of JSON with one, its first line names PyTorch's version. */
export class Torch {
  static async start(program) {
    const child = spawn(process.env.TOKENLOOM_PYTHON ?? "python3", [fileURLToPath(new URL(`peers/${program}`, import.meta.url))], { stdio: ["pipe", "pipe", "ignore"] });
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    child.on("error", () => undefined);
    child.stdin.on("error", () => undefined);
    const first = await lines.next();
    if (first.done) return { missing: "no Python with torch (set TOKENLOOM_PYTHON)" };
    return Object.assign(new Torch(), { child, lines, version: JSON.parse(first.value).version });
  }
  async ask(request) {
    this.child.stdin.write(`${JSON.stringify(request)}\n`);
    return JSON.parse((await this.lines.next()).value);
  }
  async seconds(shape) {
    return (await this.ask(shape)).seconds;
  }
  stop() {
    this.child?.stdin.end();
  }
}
