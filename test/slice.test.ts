import t from "tap";
import { AbortError } from "tokenloom";
import { Slicer } from "#lib/slice.js";

/** Works for longer than a turn of the event loop may hold of such work. */
function work(): void {
  const end = performance.now() + 1.5;
  while (performance.now() < end);
}

t.test("however many work in slices, one of them works in a turn of the event loop", async (t) => {
  const order: number[] = [];
  let inTurn = 0, most = 0, done = false;
  const watch = (): void => {
    most = Math.max(most, inTurn);
    inTurn = 0;
    if (!done) setImmediate(watch);
  };
  const slices = Array.from({ length: 20 }, async (_, i) => {
    const slicer = new Slicer();
    for (let slice = 0; slice < 4; slice++) {
      if (slicer.due) await slicer.pause();
      if (slice > 0) {
        inTurn++;
        order.push(i);
      }
      work();
    }
  });
  watch();
  await Promise.all(slices);
  done = true;
  t.ok(most <= 2, `${most} in one turn`);
  t.same(order.slice(1, 20), order.slice(21, 40), "in the same order each time");
});

t.test("a pause obeys the signal, and those behind it go on", async (t) => {
  const controller = new AbortController(), aborted = new Slicer(controller.signal), other = new Slicer();
  const first = aborted.pause(), second = other.pause();
  controller.abort("enough");
  await t.rejects(first, { name: "AbortError" });
  await second;
  t.throws(() => new Slicer(controller.signal), AbortError);
});
