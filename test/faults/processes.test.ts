import t from "tap";
import { child, report, scriptPath, sizesOf } from "./support.js";

t.test("workers may be terminated, exit or throw in the middle; the process lives", { timeout: 3_600_000, skip: process.platform === "win32" && "not measured there" }, async (t) => {
  const { terminated, exited, atOnce } = sizesOf("workers") as { terminated: number; exited: number; atOnce: number };
  const { code, signal, stdout, stderr } = await child([scriptPath("workers"), terminated, exited, atOnce].map(String), { timeout: 3_000_000 });
  t.match({ code, signal }, { code: 0, signal: null }, stderr);
  t.match(stdout, `ended ${terminated + exited}`);
  t.notMatch(stderr, /FATAL|terminate called|Segmentation/);
  report("workers", { terminated, exited, atOnce, signals: 0 });
});

t.test("the process may exit in the middle of a call, a load or by an uncaught error, without an abort", { timeout: 3_600_000 }, async (t) => {
  const { exits } = sizesOf("shutdown") as { exits: number };
  for (let i = 0; i < exits; i++) {
    const what = ["exit", "load", "uncaught"][i % 3]!, { code, signal, stderr } = await child([scriptPath("leaving"), what, String(1 + i)]);
    if (code !== (what === "uncaught" ? 1 : 0) || signal !== null || (what !== "uncaught" && stderr !== "")) t.fail(`${what} after ${1 + i}: code ${code}, signal ${signal}, ${stderr}`);
  }
  const stop = (running: Parameters<NonNullable<Parameters<typeof child>[1]>["during"] & object>[0]): void => {
    running.stdout!.on("data", (text: Buffer) => text.toString().includes("runs") && ((stoppedAt = performance.now()), running.kill("SIGTERM")));
  };
  let stoppedAt = 0;
  const server = await child([scriptPath("leaving"), "server"], { during: stop }), took = performance.now() - stoppedAt;
  t.match(server, { code: 0, signal: null, stderr: "" });
  t.match(server.stdout, /streams ended 8/, "each stream ended by itself");
  const plain = await child([scriptPath("leaving"), "plain"], { during: stop });
  t.match(plain, { code: null, signal: "SIGTERM", stderr: "" }, "without a handler SIGTERM ends the process, and nothing else does");
  report("shutdown", { exits, msFromSigtermToExit: Math.round(took), streamsEnded: 8 });
});

t.test("a model file that is cut or removed while it is loaded or used hurts nobody", { timeout: 3_600_000 }, async (t) => {
  const { trials } = sizesOf("shrinking") as { trials: number };
  const { code, signal, stdout, stderr } = await child([scriptPath("shrinking"), String(trials)]);
  t.match({ code, signal }, { code: 0, signal: null }, stderr);
  report("shrinking", { trials, ...(JSON.parse(stdout) as object) });
});
