import { ModelFormatError } from "../errors.js";
import type { Architecture, DecoderDescription } from "./config.js";
import type { ModelFile } from "./file.js";
import { gemma2 } from "./gemma2.js";
import { gemma3 } from "./gemma3.js";
import { llama } from "./llama.js";
import { phi3 } from "./phi3.js";
import { qwen2 } from "./qwen2.js";
import { qwen3 } from "./qwen3.js";

/** Every decoder this package runs: a new one is one file and one entry here. */
export const architectures: readonly Architecture[] = [llama, qwen2, qwen3, gemma2, gemma3, phi3];

/**
 * Reads a decoder's hyperparameters and finds its weights, for the architecture that the file names.
 * @throws ModelFormatError where the architecture is unknown or config.json is missing, a hyperparameter is out of range, or a tensor is missing, misshapen or one too many
 */
export function describeDecoder(file: ModelFile): DecoderDescription {
  if (file.format === "safetensors" && [...file.metadata.keys()].length === 0) {
    throw new ModelFormatError("Expected a file config.json beside the safetensors file, which says what model the tensors make, but there is none", { file: file.path });
  }
  const key = file.format === "gguf" ? "general.architecture" : "model_type";
  const name = file.metadata.string(key);
  const namesOf = (architecture: Architecture): readonly string[] => (file.format === "gguf" ? architecture.gguf : architecture.modelTypes);
  const found = architectures.find((architecture) => namesOf(architecture).includes(name));
  if (found === undefined) {
    throw new ModelFormatError(`Expected one of ${architectures.flatMap(namesOf).join(", ")} for ${key} but found '${name}'`, { file: file.path });
  }
  return found.describe(file);
}
