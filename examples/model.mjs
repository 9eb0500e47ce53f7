// What the examples share: the model to run and a progress bar for bringing it.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { SingleBar } from "cli-progress";
import { loadModel } from "tokenloom";

export const tiny = fileURLToPath(new URL("../models/tiny.gguf", import.meta.url));
const smollm2 = "smollm2-135m-instruct";

/** The model named by TOKENLOOM_MODEL, else SmolLM2 (brought if it is not there yet), else the tiny model of this package. */
export async function openModel() {
  const named = process.env.TOKENLOOM_MODEL;
  if (named) return loadModel(named);
  const bar = new SingleBar({ format: `Fetching ${smollm2} [{bar}] {value}/{total} MB`, stream: process.stderr, clearOnComplete: true, hideCursor: true });
  let shown = false;
  const onProgress = ({ stage, loaded, total }) => {
    if (stage !== "fetch" || !process.stderr.isTTY) return;
    if (!shown) bar.start(Math.ceil(total / 1e6), 0);
    shown = true;
    bar.update(Math.floor(loaded / 1e6));
  };
  try {
    return await loadModel(smollm2, { onProgress });
  } catch (error) {
    if (!existsSync(tiny)) throw error;
    console.error(`${error.message}\nGoing on with the tiny model of this package: it writes fairy-tale nonsense, but it runs the same code.\n`);
    return loadModel(tiny);
  } finally {
    bar.stop();
  }
}

/** An encoder: the one that TOKENLOOM_MODEL names, else `name`. */
export const openEncoder = (name) => loadModel(process.env.TOKENLOOM_MODEL || name, { kind: "encoder" });
