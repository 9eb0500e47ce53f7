import t from "tap";
import { runProgram } from "./cli/program.js";

t.test("docs/methods.md is what its script makes of the methods' metadata", async (t) => {
  const { code, stderr } = await runProgram("scripts/generate-methods.mjs", ["--check"]);
  t.equal(code, 0, stderr);
});
