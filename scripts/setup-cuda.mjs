// npm run setup:cuda: the CUDA compiler from NVIDIA's Python packages, pinned, into .cuda/ of this checkout. Not needed where
// a system toolkit of version 12.8 or later is (CUDA_PATH, or nvcc in PATH): --system says which one would be used.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findToolkit } from "./cuda-toolkit.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const packages = {
  "nvidia-cuda-nvcc": "13.5.37",
  "nvidia-cuda-runtime": "13.5.37",
  "nvidia-cuda-crt": "13.5.37",
  "nvidia-nvvm": "13.5.37",
  "nvidia-cuda-cccl": "13.3.5.0.6",
  "nvidia-cuda-cuobjdump": "13.5.37",
  "nvidia-cuda-nvdisasm": "13.5.37",
};
const tries = 3;

const wanted = JSON.stringify(packages);
const folder = join(root, ".cuda");
const stamp = join(folder, "packages.json");

if (process.argv.includes("--system")) {
  const toolkit = findToolkit({ local: false });
  console.log(toolkit ? `${toolkit.nvcc} (${toolkit.version})` : "There is no CUDA toolkit on this system: npm run setup:cuda installs one into .cuda/");
  process.exit(toolkit ? 0 : 1);
}
if (existsSync(stamp) && readFileSync(stamp, "utf8") === wanted) {
  console.log(`${findToolkit()?.nvcc ?? folder} is there already`);
  process.exit(0);
}

const python = [process.env.PYTHON, "python3", "python"].find((name) => name && spawnSync(name, ["-m", "pip", "--version"]).status === 0);
if (!python) {
  console.error("setup:cuda needs Python with pip (python3 -m pip), or a CUDA toolkit of your own: set CUDA_PATH to it");
  process.exit(1);
}

// Into a folder beside it, then renamed: an interrupted install leaves nothing that looks complete.
const fresh = `${folder}.new`;
rmSync(fresh, { recursive: true, force: true });
mkdirSync(fresh, { recursive: true });
const requirements = Object.entries(packages).map(([name, version]) => `${name}==${version}`);
const install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--target", fresh, ...requirements];
let done = false;
for (let attempt = 1; attempt <= tries && !done; attempt++) {
  done = spawnSync(python, install, { stdio: "inherit" }).status === 0;
  if (!done && attempt < tries) {
    console.error(`setup:cuda: attempt ${attempt} of ${tries} failed, trying again`);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, attempt * 5000);
  }
}
if (!done) {
  console.error(`setup:cuda: pip could not install ${requirements.join(" ")}`);
  process.exit(1);
}
writeFileSync(join(fresh, "packages.json"), wanted);
rmSync(folder, { recursive: true, force: true });
renameSync(fresh, folder);
const toolkit = findToolkit();
if (!toolkit) {
  console.error(`setup:cuda: the packages hold no working nvcc, see ${folder}`);
  process.exit(1);
}
console.log(`${toolkit.nvcc} (${toolkit.version})`);
