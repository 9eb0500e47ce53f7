// Builds and runs test/native. By default the release build; `--all` or TOKENLOOM_NATIVE_VARIANTS=all adds the AVX-512
// targets over emulation and the sanitizer builds. Without CMake or GoogleTest it says so and leaves the tests out.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const variants = {
  release: [],
  emulated: ["-DTL_EMULATE_X86=ON"],
  "address-undefined": ["-DTL_SANITIZE=address;undefined"],
  thread: ["-DTL_SANITIZE=thread"],
};

function run(command, args, options = {}) {
  return spawnSync(command, args, { cwd: root, encoding: "utf8", ...options });
}

const has = (program) => run(program, ["--version"]).status === 0;

/** Whether the compiler finds a header. */
function hasHeader(header) {
  return ["c++", "g++", "clang++"].some((compiler) => run(compiler, ["-x", "c++", "-fsyntax-only", "-"], { input: `#include <${header}>\n` }).status === 0);
}

function step(command, args, environment = {}) {
  const done = run(command, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...environment }, maxBuffer: 1 << 28 });
  if (done.status === 0) return done.stdout;
  process.stderr.write(`${done.stdout ?? ""}${done.stderr ?? ""}${done.error ? `${done.error.message}\n` : ""}`);
  console.log(`native tests failed: ${command} ${args.join(" ")}`);
  const counted = /\d+ tests failed out of \d+/.exec(done.stdout ?? "");
  console.log(counted ? counted[0] : "1 tests failed out of 1");
  process.exit(1);
}

function test(name, options) {
  const folder = join("build", `native-${name}`);
  const launcher = has("ccache") ? ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache", "-DCMAKE_C_COMPILER_LAUNCHER=ccache"] : [];
  step("cmake", ["-S", ".", "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DTL_ADDON=OFF", "-DTL_NATIVE_TESTS=ON", ...launcher, ...options]);
  step("cmake", ["--build", folder, "--parallel", String(cpus().length)]);
  const environment = { UBSAN_OPTIONS: "halt_on_error=1:print_stacktrace=1", TSAN_OPTIONS: "halt_on_error=1", ASAN_OPTIONS: "detect_leaks=1" };
  const output = step("ctest", ["--test-dir", folder, "--output-on-failure", "--timeout", "600", "--parallel", String(cpus().length)], environment);
  console.log(`native, ${name}: ${/\d+ tests failed out of \d+/.exec(output)?.[0] ?? "no tests"}`);
}

if (!existsSync(join(root, "test/native/CMakeLists.txt"))) console.log("native tests: none in this tree");
else if (!has("cmake") || !hasHeader("gtest/gtest.h")) console.log("native tests left out: they need CMake and GoogleTest (libgtest-dev)");
else {
  const all = process.argv.includes("--all") || process.env.TOKENLOOM_NATIVE_VARIANTS === "all";
  for (const [name, options] of Object.entries(variants)) {
    if (name !== "release" && !all) continue;
    if (name === "emulated" && !hasHeader("simde/x86/avx2.h")) console.log("native, emulated: left out, needs SIMDe (libsimde-dev)");
    else test(name, options);
  }
}
