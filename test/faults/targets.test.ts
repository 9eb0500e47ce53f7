import { createReadStream, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import t from "tap";
import { systemInfo } from "tokenloom";
import { child, report, sanitizedEnvironment, scriptPath, sizesOf } from "./support.js";

interface Result {
  readonly type: string;
  readonly shape: readonly number[];
  readonly data: string;
}
interface Case {
  readonly name: string;
  readonly refused: string;
  readonly results: readonly Result[];
}

const isas = systemInfo().availableIsas, others = isas.filter((isa) => isa !== "scalar");
/** Normalised squared error, as ggml's test-backend-ops has it. */
const mostError = 1e-7;
/** What a choice was made by may be equal but for rounding; a share of the cases above this is no rounding. */
const mostOtherChoices = 0.01;

function floats({ data }: Result): Float32Array {
  const bytes = Buffer.from(data, "base64");
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

function errorOf(got: Float32Array, want: Float32Array): number {
  let lost = 0, whole = 0;
  for (let i = 0; i < want.length; i++) {
    if (Object.is(got[i], want[i])) continue;
    if (!Number.isFinite(want[i]!) || !Number.isFinite(got[i]!)) return Infinity;
    lost += (got[i]! - want[i]!) ** 2;
  }
  for (const value of want) if (Number.isFinite(value)) whole += value ** 2;
  return lost / Math.max(whole, 1e-6 * want.length, 1e-12);
}

async function* casesOf(path: string): AsyncGenerator<Case> {
  for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) yield JSON.parse(line) as Case;
}

t.test("every op gives on each instruction set what plain code gives, and writes nowhere else", { timeout: 7_200_000 }, async (t) => {
  const { cases, sanitized } = sizesOf("targets") as { cases: number; sanitized: number }, folder = mkdtempSync(join(tmpdir(), "tokenloom-targets-")), seed = 19, part = 5000;
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const counts = { cases, instructionSets: isas.length, guardedArrays: 0, refused: 0, otherChoices: 0, largestError: 0 };
  for (let first = 0; first < cases; first += part) {
    const count = Math.min(part, cases - first);
    for (const isa of ["scalar", ...others]) {
      const { code, stdout, stderr } = await child([scriptPath("differential"), seed, first, count, join(folder, isa)].map(String), { env: { TOKENLOOM_ISA: isa } });
      t.equal(code, 0, `${isa}: ${stderr.slice(0, 1000)}`);
      counts.guardedArrays += Number(stdout);
    }
    for (const isa of others) {
      const plain = casesOf(join(folder, "scalar"));
      let i = first;
      for await (const got of casesOf(join(folder, isa))) {
        const want = (await plain.next()).value as Case, where = `case ${i++}, ${got.name}, ${isa}`;
        if (got.refused !== want.refused) t.fail(`${where}: ${got.refused} instead of ${want.refused}`);
        if (got.refused !== "") counts.refused++;
        // Behind another choice other numbers follow: only how often that happens is looked at.
        if (got.results.some(({ type, data }, k) => type !== "f32" && data !== want.results[k]!.data)) {
          counts.otherChoices++;
          continue;
        }
        for (const [k, result] of got.results.entries()) {
          const error = result.type === "f32" ? errorOf(floats(result), floats(want.results[k]!)) : 0;
          counts.largestError = Math.max(counts.largestError, error);
          if (!(error <= mostError)) t.fail(`${where}: result ${k} of shape [${result.shape.join(", ")}] is off by ${error}`);
        }
      }
    }
  }
  t.ok(counts.otherChoices <= mostOtherChoices * cases * others.length, `${counts.otherChoices} other choices`);
  t.ok(others.length > 0 || isas.length === 1);
  const env = sanitizedEnvironment();
  if (env) {
    for (const isa of ["scalar", others.includes("avx2") ? "avx2" : "neon"]) {
      const { code, stderr } = await child([scriptPath("differential"), seed + 1, 0, sanitized, join(folder, "sanitized")].map(String), { env: { ...env, TOKENLOOM_ISA: isa } });
      t.equal(code, 0, `${isa} under AddressSanitizer: ${stderr.slice(0, 3000)}`);
    }
  } else {
    t.comment("the addon with AddressSanitizer is not built: node scripts/build-faults.mjs");
  }
  report("targets", { ...counts, largestError: counts.largestError.toExponential(1), sanitized: env ? 2 * sanitized : 0 });
});
