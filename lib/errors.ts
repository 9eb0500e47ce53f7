/** Every error of this package: `code` is stable, `message` is for people. */
export class TokenloomError extends Error {
  readonly code: string;
  constructor(code: string, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.code = code;
    this.name = new.target.name;
  }
}

/** A public entry was called with an argument it cannot use. `argument` names it. */
export class ArgumentError extends TokenloomError {
  readonly argument: string;
  constructor(argument: string, message: string) {
    super("TL_ARGUMENT", message);
    this.argument = argument;
  }
}

/** Shapes do not fit together. `op` names the operation or graph node. */
export class ShapeError extends TokenloomError {
  readonly op: string;
  readonly argument: string;
  constructor(op: string, argument: string, message: string) {
    super("TL_SHAPE", message);
    this.op = op;
    this.argument = argument;
  }
}

/** A model file breaks its format, or lacks what its architecture needs. */
export class ModelFormatError extends TokenloomError {
  /** Byte offset in `file` where reading failed, where that is known. */
  readonly offset: number | undefined;
  /** The tensor at fault, where one is. */
  readonly tensor: string | undefined;
  readonly file: string | undefined;
  constructor(message: string, where: { offset?: number | undefined; tensor?: string | undefined; file?: string | undefined } = {}) {
    const place = [
      where.tensor === undefined ? "" : `tensor ${where.tensor}`,
      where.offset === undefined ? "" : `offset ${where.offset}`,
      where.file === undefined ? "" : `file ${where.file}`,
    ].filter((part) => part !== "");
    super("TL_MODEL_FORMAT", place.length > 0 ? `${message} (${place.join(", ")})` : message);
    this.offset = where.offset;
    this.tensor = where.tensor;
    this.file = where.file;
  }
}

/** Use of a tensor, graph, session or model after its dispose(). */
export class DisposedError extends TokenloomError {
  constructor(what: string) {
    super("TL_DISPOSED", `${what} was disposed of and cannot be used any more`);
  }
}

/** A second operation was started on something that can do one at a time. */
export class BusyError extends TokenloomError {
  constructor(what: string) {
    super("TL_BUSY", `${what} is busy with another operation: await or abort that one first`);
  }
}

/** The prompt and the tokens asked for do not fit the model's context or the cache's limit. */
export class ContextOverflowError extends TokenloomError {
  constructor(message: string) {
    super("TL_CONTEXT", message);
  }
}

/** Memory could not be had, or a limit set by the user was reached. Nothing held so far is lost. */
export class OutOfMemoryError extends TokenloomError {
  constructor(message: string) {
    super("TL_MEMORY", message);
  }
}

/** The model gave a value with which nothing can be done: NaN logits, for example. */
export class NumericError extends TokenloomError {
  constructor(message: string) {
    super("TL_NUMERIC", message);
  }
}

/** A signal was aborted: `name` is "AbortError" as in the web platform; `cause` is the signal's reason. */
export class AbortError extends TokenloomError {
  constructor(reason?: unknown) {
    super("TL_ABORTED", "The operation was aborted", { cause: reason });
    this.name = "AbortError";
  }
}

/** "5 of type number", "'abc' of type string": how messages show what came. */
export function describe(value: unknown): string {
  if (value === null) return "null";
  if (value === undefined) return "undefined";
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "object" || typeof value === "function") return `${value.constructor?.name ?? "object"} of type ${typeof value}`;
  const text = typeof value === "string" ? `'${value.length > 40 ? `${value.slice(0, 40)}…` : value}'` : String(value);
  return `${text} of type ${typeof value}`;
}

/** The one phrase of all argument errors. */
export function invalidArgument(argument: string, expected: string, received: unknown): ArgumentError {
  return new ArgumentError(argument, `Expected ${expected} for ${argument} but received ${describe(received)}`);
}
