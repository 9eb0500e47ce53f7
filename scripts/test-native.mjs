// Builds and runs test/native in folders of its own, build/native-NAME. Variants:
//   normal    the release build; where the addon was built before, in its folder and of the same object files
//   asan      AddressSanitizer and UndefinedBehaviorSanitizer
//   tsan      ThreadSanitizer, the tests that use threads, on the scalar target (threads are the same in all)
//   emulated  the AVX-512 targets over SIMDe, on any processor
//   neon      the targets of ARM, cross-compiled and run by QEMU
// Without arguments: normal and asan. `--only NAME,NAME` picks, `--all` or TOKENLOOM_NATIVE_VARIANTS=all (or a list) too.
// A variant whose tools are missing says so and is left out: a first `npm test` needs no GoogleTest.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { sanitizedFlags, sanitizedTargets } from "./sanitizers.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const jobs = String(Math.min(2, cpus().length));
const arm = process.arch === "arm64";
const crossCompiler = "aarch64-linux-gnu-g++";
const googletest = "/usr/src/googletest";

const variants = {
  normal: { options: ["-DCMAKE_BUILD_TYPE=Release"] },
  asan: { options: [...Object.entries(sanitizedFlags).map(([name, value]) => `-D${name}=${value}`), `-DTL_ONLY=${sanitizedTargets}`] },
  tsan: { options: ["-DCMAKE_BUILD_TYPE=Sanitize", "-DCMAKE_CXX_FLAGS=-O1", "-DTL_SANITIZE=thread", "-DTL_ONLY=SCALAR"], tests: "Thread|Pool" },
  emulated: {
    // Unoptimised: inlined emulation takes the compiler longer than the tests take.
    options: ["-DCMAKE_BUILD_TYPE=Emulated", "-DTL_EMULATE_X86=ON", "-DTL_ONLY=SCALAR;AVX512;AVX512BF16"],
    missing: () => (hasHeader("simde/x86/avx512.h") ? "" : "SIMDe (libsimde-dev)"),
  },
  neon: {
    options: arm
      ? ["-DCMAKE_BUILD_TYPE=Release"]
      : [
          "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", `-DCMAKE_CXX_COMPILER=${crossCompiler}`,
          "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64-static;-cpu;max;-L;/usr/aarch64-linux-gnu", `-DTL_GTEST_SOURCE=${googletest}`,
        ],
    missing: () => {
      if (arm) return "";
      if (!has(crossCompiler)) return "a cross compiler (g++-aarch64-linux-gnu)";
      if (!has("qemu-aarch64-static")) return "QEMU (qemu-user-static)";
      return existsSync(googletest) ? "" : "GoogleTest's sources (googletest)";
    },
  },
};

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: root, encoding: "utf8", maxBuffer: 1 << 28, ...options });
}

function has(program) {
  return run(program, ["--version"]).status === 0;
}

/** Whether the compiler finds a header. */
function hasHeader(header) {
  return ["c++", "g++", "clang++"].some((compiler) => run(compiler, ["-x", "c++", "-std=c++20", "-fsyntax-only", "-"], { input: `#include <${header}>\n` }).status === 0);
}

/** The step's output; ends the process where it fails. */
function step(name, command, args, environment = {}) {
  const done = run(command, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...environment } });
  if (done.status === 0) return done.stdout;
  process.stderr.write(`${done.stdout ?? ""}${done.stderr ?? ""}${done.error ? `${done.error.message}\n` : ""}`);
  console.log(`native, ${name}: failed in ${command} ${args.join(" ")}`);
  console.log(/\d+ tests failed out of \d+/.exec(done.stdout ?? "")?.[0] ?? "1 tests failed out of 1");
  process.exit(1);
}

function test(name, { options, tests }) {
  const started = Date.now();
  const own = name === "normal" && process.platform !== "win32" && existsSync(join(root, "build", "CMakeCache.txt")), folder = own ? "build" : join("build", `native-${name}`);
  const launcher = has("ccache") ? ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache", "-DCMAKE_C_COMPILER_LAUNCHER=ccache"] : [];
  step(name, "cmake", ["-S", ".", "-B", folder, "-DTL_NATIVE_TESTS=ON", ...(own ? [] : ["-DTL_ADDON=OFF", ...launcher, ...options])]);
  step(name, "cmake", ["--build", folder, "--parallel", jobs, "--target", "native_tests"]);
  const environment = { UBSAN_OPTIONS: "halt_on_error=1:print_stacktrace=1", TSAN_OPTIONS: "halt_on_error=1", ASAN_OPTIONS: "detect_leaks=1" };
  const chosen = tests ? ["--tests-regex", tests] : [];
  const output = step(name, "ctest", ["--test-dir", folder, "--output-on-failure", "--no-tests=error", "--timeout", "600", "--parallel", jobs, ...chosen], environment);
  const closing = output.split("\n").find((line) => /tests failed out of/.test(line)) ?? "";
  console.log(`native, ${name}: ${closing} (${Math.round((Date.now() - started) / 1000)} s with the build)`);
}

function chosenVariants() {
  const only = process.argv.indexOf("--only");
  const text = process.argv.includes("--all") ? "all" : only > 0 ? (process.argv[only + 1] ?? "") : (process.env.TOKENLOOM_NATIVE_VARIANTS ?? "");
  const names = text === "" ? ["normal", "asan"] : text === "all" ? Object.keys(variants) : text.split(",");
  const unknown = names.filter((name) => !Object.hasOwn(variants, name));
  if (unknown.length === 0) return names;
  console.error(`Expected ${Object.keys(variants).join(", ")} or all for variants but received ${unknown.join(", ")}`);
  process.exit(2);
}

for (const name of chosenVariants()) {
  const variant = variants[name];
  const missing = !has("cmake") ? "CMake" : !has("c++") && !has("g++") ? "a C++ compiler" : !hasHeader("gtest/gtest.h") ? "GoogleTest (libgtest-dev)" : (variant.missing?.() ?? "");
  if (missing) console.log(`native, ${name}: left out, needs ${missing}`);
  else test(name, variant);
}
