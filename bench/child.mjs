import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";

/** Runs bench/PROGRAM.mjs with the request as JSON in argv, in a process of its own; resolves with the message that it sends. */
export function measure(program, request) {
  return new Promise((resolve, reject) => {
    const child = fork(fileURLToPath(new URL(`${program}.mjs`, import.meta.url)), [JSON.stringify(request)], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
    let answer;
    child.once("message", (message) => (answer = message));
    child.once("exit", (code, signal) => (answer ? resolve(answer) : reject(new Error(`${program} ${JSON.stringify(request).slice(0, 200)} ended with ${signal ?? `code ${code}`}`))));
  });
}
