import { dirname, join } from "node:path";
import { bert } from "./bert.js";
import type { BesideFiles, EncoderArchitecture, EncoderDescription } from "./encoder-config.js";
import type { ModelFile } from "./file.js";
import { toPlain } from "./json.js";
import { exists, readJsonObject } from "./safetensors.js";
import type { Slicer } from "../slice.js";
import { clip, dinov2, siglip, vit } from "./vit.js";

/** Every family of encoders this package runs. */
export const encoderArchitectures: readonly EncoderArchitecture[] = [bert, vit, dinov2, clip, siglip];

/** The family of encoders that a file's `model_type` names, if any. */
export function encoderArchitecture(file: ModelFile): EncoderArchitecture | undefined {
  if (file.format !== "safetensors" || !file.metadata.has("model_type")) return undefined;
  const type = file.metadata.string("model_type");
  return encoderArchitectures.find(({ modelTypes }) => modelTypes.includes(type));
}

/** What the files beside the weights say of preprocessing and pooling. Throws ModelFormatError. */
export async function describeEncoder(architecture: EncoderArchitecture, file: ModelFile, slicer: Slicer): Promise<EncoderDescription> {
  const folder = dirname(file.path);
  const read = async (...names: string[]): Promise<Record<string, unknown> | undefined> => {
    const path = join(folder, ...names);
    return (await exists(path)) ? (toPlain(await readJsonObject(path, slicer)) as Record<string, unknown>) : undefined;
  };
  const sentence = await read("sentence_bert_config.json"), length = sentence?.["max_seq_length"], pooling = await read("1_Pooling", "config.json");
  const beside: BesideFiles = {
    preprocessor: (await read("preprocessor_config.json")) ?? {}, pooling,
    // Only models that sentence-transformers made have such a folder; there the absence of a step is meant.
    normalize: pooling === undefined ? undefined : await exists(join(folder, "2_Normalize")),
    maxSequenceLength: Number.isInteger(length) && (length as number) > 2 ? (length as number) : undefined,
  };
  return architecture.describe(file, beside);
}
