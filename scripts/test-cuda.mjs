// npm run test:cuda [-- STAGE …]: tests of cuda/ on machines without a GPU. Stages, all by default:
//   faults    builds the emulation three times (plain, ASan with UBSan, TSan) and checks that each fault of
//             test/native/cuda_host/faults.cu is caught by what should catch it, and that nothing else is reported
import { spawnSync } from "node:child_process";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));
export const schedules = ["0", "1", "2"];
export const variants = { plain: "", asan: "address,undefined", tsan: "thread" };

export function runOrExit(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", cwd: root, ...options });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

/** Builds targets of the emulation in build/cuda-host-VARIANT and returns that folder. */
export function buildHost(variant, ...targets) {
  const folder = join(root, "build", `cuda-host-${variant}`);
  const ccache = spawnSync("ccache", ["--version"]).status === 0 ? ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] : [];
  const sanitize = variants[variant] === "" ? [] : [`-DTL_SANITIZE=${variants[variant]}`];
  runOrExit("cmake", ["-S", root, "-B", folder, "-DTL_ADDON=OFF", "-DTL_CUDA_HOST=ON", "-DTL_ONLY=SCALAR", "-DCMAKE_BUILD_TYPE=Release", ...sanitize, ...ccache], { stdio: ["ignore", "ignore", "inherit"] });
  runOrExit("cmake", ["--build", folder, "-j", String(Math.min(2, cpus().length)), "--target", ...targets], { stdio: ["ignore", "ignore", "inherit"] });
  return join(folder, "test", "native", "cuda_host");
}

/** Which variants have to catch a fault, in one of the schedules at least. */
const caughtBy = {
  none: [], noneProduct: [],
  noBarrierAfterWait: ["plain"], noBarrierBeforeRefill: ["plain", "tsan"], noBarrierInReduction: ["plain", "tsan"], waitOneShort: ["plain"],
  rowPastEnd: ["plain", "asan"], sharedTooSmall: ["asan"], wrongShuffle: ["plain"], divergentBarrier: ["plain"], divergentShuffle: ["plain"],
  misalignedCopy: ["plain"], openCopies: ["plain"], noWarpBarrier: ["plain"], wrongFragment: ["plain"],
};

function testFaults() {
  let wrong = 0;
  for (const variant of Object.keys(variants)) {
    const program = join(buildHost(variant, "cuda_faults"), "cuda_faults");
    const names = spawnSync(program, { encoding: "utf8" }).stdout.trim().split("\n");
    if (names.join() !== Object.keys(caughtBy).join()) throw new Error("faults.cu and caughtBy name different faults");
    for (const name of names) {
      const caught = schedules.filter((schedule) => {
        const { status } = spawnSync(program, [name], { env: { ...process.env, TOKENLOOM_CUDA_HOST_SCHEDULE: schedule, ASAN_OPTIONS: "detect_leaks=0" }, timeout: 60_000 });
        return status !== 0;
      });
      const good = name.startsWith("none") ? caught.length === 0 : caught.length > 0 || !caughtBy[name].includes(variant);
      if (!good) wrong++;
      console.log(`${good ? "ok  " : "FAIL"}  ${variant.padEnd(5)} ${name}: ${caught.length > 0 ? `caught in schedules ${caught.join(", ")}` : "no complaint"}`);
    }
  }
  return wrong;
}

const stages = { faults: testFaults };
const chosen = process.argv.slice(2);
for (const name of chosen) {
  if (!Object.hasOwn(stages, name)) {
    console.error(`There is no stage ${name}: choose of ${Object.keys(stages).join(", ")}`);
    process.exit(2);
  }
}
let failures = 0;
for (const [name, stage] of Object.entries(stages)) if (chosen.length === 0 || chosen.includes(name)) failures += await stage();
if (failures > 0) console.error(`${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
