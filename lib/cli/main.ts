#!/usr/bin/env node
import { createRequire } from "node:module";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { drafterNames } from "./drafters.js";
import { reductionHelp } from "./reductions.js";
import { fail, quietOnBrokenPipe } from "./terminal.js";

const isas = ["scalar", "avx2", "avx512", "avx512bf16", "neon", "neondot"];
const { version } = createRequire(import.meta.url)("../../../package.json") as { version: string };

function decimal(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("Expected a number.");
  return value;
}

function integer(text: string): number {
  const value = decimal(text);
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError("Expected an integer.");
  return value;
}

function append(text: string, earlier: string[] | undefined): string[] {
  return [...(earlier ?? []), text];
}

/** The options that every command understands. */
function command(parent: Command, usage: string, description: string): Command {
  return parent
    .command(usage)
    .description(description)
    .option("--threads <n>", "cores to use (default: all that this process may use)", integer)
    .addOption(new Option("--isa <name>", "instruction set to use (default: the best one)").choices(isas))
    .option("--offline", "never use the network")
    .option("--json", "print one JSON object on standard output and nothing else there")
    .option("--verbose", "print statistics and stack traces on standard error");
}

function describeProgram(): Command {
  const program = new Command("tokenloom").description("Runs language models and encoders on handwritten SIMD kernels.").version(version).exitOverride();
  program.configureOutput({ outputError: (text, print) => print(`${text.trim().replace(/^error:/, "tokenloom:").replace(/\s*\n\s*/g, " ")}\n`) });

  command(program, "run", "answer a prompt, or chat where there is none")
    .argument("<model>", "path of a .gguf file or a safetensors folder, or the name of a known model")
    .argument("[prompt]", "text to continue; read from standard input where that is not a terminal")
    .option("--chat", "send the prompt through the model's chat template")
    .option("--system <text>", "system message; implies --chat")
    .option("--temperature <t>", "0 takes the likeliest token each time (default: 0)", decimal)
    .option("--top-k <k>", "sample among the k likeliest tokens", integer)
    .option("--top-p <p>", "sample among the likeliest tokens of this total probability", decimal)
    .option("--min-p <p>", "sample among tokens at least this fraction as likely as the likeliest", decimal)
    .option("--repeat-penalty <x>", "divide the logits of recent tokens by this", decimal)
    .option("--seed <n>", "seed of the random numbers", integer)
    .option("--max-tokens <n>", "length limit of the answer", integer)
    .option("--cache <policy:budget>", "what of the cache to keep, such as snapkv:512 or streaming:1024")
    .addOption(new Option("--draft <name>", "guess tokens ahead; the text stays the same").choices(drafterNames))
    .option("--stop <text>", "end the answer before this text; may be given several times", append)
    .action(async (model, prompt, options) => (await import("./run.js")).run(model, prompt, options));

  command(program, "draft", "write with speculative draft trees, compare with plain decoding, draw the trees")
    .argument("<model>", "path or name of a model")
    .requiredOption("--prompt <text>", "text to continue")
    .option("--chat", "send the prompt through the model's chat template")
    .addOption(new Option("--drafter <name>", "who guesses").choices(drafterNames).default("combine"))
    .option("--nodes <n>", "nodes verified a step, root included (default: as many as pay)", integer)
    .option("--svg <file>", "draw the trees into this file")
    .option("--temperature <t>", "0 takes the likeliest token each time (default: 0)", decimal)
    .option("--seed <n>", "seed of the random numbers", integer)
    .option("--max-tokens <n>", "length limit of the answer (default: 128)", integer)
    .action(async (model, options) => (await import("./draft.js")).draft(model, options));

  command(program, "cache", "cut the cache of a prompt by a policy, compare the answers, draw what stayed")
    .argument("<model>", "path or name of a model")
    .option("--prompt <text>", "the prompt")
    .option("--prompt-file <path>", "a file that holds it, UTF-8")
    .requiredOption("--policy <name:budget>", "such as snapkv:256 (tokens a head) or h2o:25%")
    .option("--svg <file>", "draw into this file which tokens stayed, by layer and head")
    .option("--max-tokens <n>", "length of the answers", integer, 32)
    .action(async (model, options) => (await import("./cache.js")).cache(model, options));

  command(program, "info", "describe a model file, or this machine with --devices")
    .argument("[model]", "path or name of a model")
    .option("--devices", "list instruction sets and devices instead")
    .action(async (model, options, self: Command) => {
      if (model === undefined && options.devices !== true) self.error("error: missing required argument 'model' (or --devices)");
      await (await import("./info.js")).info(model, options);
    });

  command(program, "score", "teacher-forced log-probabilities and perplexity of a text")
    .argument("<model>", "path or name of a model")
    .option("--file <path>", "text to score, UTF-8; - for standard input")
    .option("--ids <json>", "token ids to score: a JSON array, or a file that holds one")
    .option("--top <n>", "how many of the best logits to give for each position", integer, 20)
    .action(async (model, options, self: Command) => {
      if ((options.file === undefined) === (options.ids === undefined)) self.error("error: expected one of --file and --ids");
      await (await import("./score.js")).score(model, options);
    });

  command(program, "embed", "vectors of texts, one a line, or of images")
    .argument("<model>", "path or name of an encoder: BERT, MiniLM, bge, ViT, DINOv2, CLIP, SigLIP")
    .argument("[files...]", "images; or one file of texts, UTF-8, a line each; standard input where none is given")
    .option("--reduce <name:n>", reductionHelp)
    .addOption(new Option("--pool <how>", "how one vector is made of tokens (default: as the model was trained)").choices(["cls", "mean", "max", "attention"]))
    .addOption(new Option("--weights <type>", "how weights are kept").choices(["f32", "bf16", "int8"]))
    .option("--truncate", "cut texts that are too long")
    .action(async (model, files, options) => (await import("./embed.js")).embed(model, files, options));

  command(program, "see", "draw an image's tokens, and its saliency, before and after a reduction")
    .argument("<model>", "path or name of an encoder of images")
    .argument("<image>", "path of an image")
    .option("--reduce <name:n>", reductionHelp, "toMe:13")
    .requiredOption("--out <file>", "where to write the PNG")
    .action(async (model, image, options) => (await import("./see.js")).see(model, image, options));

  command(program, "compare", "all reductions on images: an HTML table with pictures, times, tokens and agreement")
    .argument("<model>", "path or name of an encoder of images")
    .argument("<images...>", "paths of images")
    .option("--reduce <name:n>", `${reductionHelp}; may be given several times`, append)
    .option("--out <file>", "where to write the table", "compare.html")
    .action(async (model, images, options) => (await import("./compare.js")).compare(model, images, options));

  command(program, "bench", "measure this machine on a model")
    .argument("<model>", "path or name of a model")
    .option("--prompt-tokens <n>", "length of the prompt (default: 512, or what the context holds)", integer)
    .option("--tokens <n>", "tokens to generate", integer, 128)
    .option("--context <n>", "tokens held when generation is measured again; 0 leaves that out (default: 1800, or what the context holds)", integer)
    .option("--runs <n>", "best of so many", integer, 3)
    .action(async (model, options) => (await import("./bench.js")).bench(model, options));

  return program;
}

quietOnBrokenPipe();
try {
  await describeProgram().parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else fail(error, process.argv.includes("--verbose"));
}
