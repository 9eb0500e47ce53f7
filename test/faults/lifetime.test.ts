import t from "tap";
import { child, report, scriptPath, sizesOf } from "./support.js";

t.test("lives without end: nothing grows, with dispose and without", { timeout: 3_600_000 }, async (t) => {
  // The bar of 8 MiB is for many lives: of a few, what engine and allocator keep for later is the larger part.
  const { objects, models, mostKiB } = sizesOf("cycles") as { objects: number; models: number; mostKiB: number }, figures: Record<string, number> = { objects, models };
  for (const kind of ["tensors", "graphs", "sessions", "ops", "generations", "models"]) {
    for (const name of [kind, `dropped-${kind}`]) {
      const { code, stdout, stderr } = await child(["--expose-gc", scriptPath("cycles"), name, String(kind === "models" ? models : objects)]);
      t.equal(code, 0, stderr);
      const { grownKiB, ...held } = JSON.parse(stdout) as { grownKiB: number };
      t.same(held, { handles: 0, weights: 0, cache: 0, tensors: 0 }, `${name}: nothing is held`);
      t.ok(grownKiB < mostKiB, `${name}: grown by ${grownKiB} KiB`);
      figures[`${name}KiB`] = grownKiB;
    }
  }
  report("cycles", figures);
});

t.test("dropped tensors do not pile up: V8 knows their bytes", { timeout: 600_000 }, async (t) => {
  const { tensors } = sizesOf("external") as { tensors: number };
  const code = `
    import { zeros } from "tokenloom";
    for (let i = 0; i < ${tensors}; i++) { zeros([512, 512]).data[i] = 1; if (i % 8 === 0) await new Promise(setImmediate); }
    console.log(process.resourceUsage().maxRSS);`;
  const { stdout, stderr } = await child(["--input-type=module", "-e", code]), mib = Math.round(Number(stdout) / 1024);
  t.ok(mib > 0 && mib < 400, `peak of ${mib} MiB ${stderr}`);
  report("external", { tensors, peakMiB: mib });
});
