import t from "tap";
import fc from "./support/property.js";

t.test("a failing property tells seed, path and counterexample in ASCII", async (t) => {
  const failing = fc.property(fc.constantFrom("a\u2028b", "é😀\u2029"), () => {
    throw new Error("no");
  });
  const error = t.throws(() => fc.assert(failing, { seed: 7 })) as unknown as Error;
  t.match(error.message, /seed: 7, path: "/);
  t.match(error.message, /Counterexample: \["(a\\u\{2028\}b|\\u\{e9\}\\u\{1f600\}\\u\{2029\})"\]/);
  t.match(error.message, /^[\n\x20-\x7e]*$/);
  await t.rejects(fc.assert(fc.asyncProperty(fc.nat(), async () => false), { seed: 8 }), { message: /seed: 8/ });
});
