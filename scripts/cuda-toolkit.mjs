// Where the CUDA compiler is: .cuda/ of this checkout (npm run setup:cuda), CUDA_PATH or CUDA_HOME, PATH, /usr/local/cuda.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

/** Of the Python packages: nvidia/cu13/bin/nvcc. */
function localRoots() {
  const base = join(root, ".cuda", "nvidia");
  return existsSync(base) ? readdirSync(base).map((name) => join(base, name)) : [];
}

/** The first toolkit that answers `nvcc --version`: { root, nvcc, cuobjdump, libraries, version }, or undefined. */
export function findToolkit({ local = true } = {}) {
  const system = [process.env.CUDA_PATH, process.env.CUDA_HOME, ...(process.env.PATH ?? "").split(delimiter).map((path) => dirname(path)), "/usr/local/cuda"];
  for (const base of [...(local ? localRoots() : []), ...system]) {
    if (!base || !existsSync(join(base, "bin", "nvcc"))) continue;
    const nvcc = join(base, "bin", "nvcc");
    const answer = spawnSync(nvcc, ["--version"], { encoding: "utf8" });
    const version = /release (\d+\.\d+)/.exec(answer.stdout ?? "")?.[1];
    if (answer.status !== 0 || !version) continue;
    const libraries = ["lib64", "lib"].map((name) => join(base, name)).find((path) => existsSync(join(path, "libcudart_static.a")));
    return { root: base, nvcc, cuobjdump: join(base, "bin", "cuobjdump"), libraries, version };
  }
  return undefined;
}
