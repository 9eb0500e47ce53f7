import t from "tap";
import { child, report, sanitizedEnvironment, scriptPath } from "./support.js";

t.test("std::exception, std::bad_alloc and an int thrown in each entry point, completion and thread become typed errors", { timeout: 600_000 }, async (t) => {
  const env = sanitizedEnvironment();
  if (env === undefined) return t.comment("the addon that throws on purpose is not built: node scripts/build-faults.mjs");
  const { code, signal, stdout, stderr } = await child(["--expose-gc", scriptPath("throwing")], { env });
  t.match({ code, signal }, { code: 0, signal: null }, stderr.slice(0, 3000));
  const figures = JSON.parse(stdout) as { places: number; thrown: number; wrong: string[] };
  t.same(figures.wrong, []);
  t.ok(figures.places >= 25);
  report("exceptions", { places: figures.places, thrown: figures.thrown });
  return undefined;
});
