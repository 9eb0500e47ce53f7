import { describe, ModelFormatError } from "../errors.js";
import type { Metadata } from "./file.js";
import { StringTable } from "./strings.js";

/** Values of unknown origin behind typed accessors; the subclasses say where a key's value comes from. */
abstract class TypedMetadata implements Metadata {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  abstract raw(key: string): unknown;
  abstract keys(): Iterable<string>;

  has(key: string): boolean {
    return this.raw(key) !== undefined;
  }

  string(key: string, fallback?: string): string {
    return this.#read(key, fallback, "a string", (value) => (typeof value === "string" ? value : undefined));
  }

  number(key: string, fallback?: number): number {
    return this.#read(key, fallback, "a finite number", (value) =>
      typeof value === "number" && Number.isFinite(value) ? value : undefined);
  }

  integer(key: string, fallback?: number): number {
    return this.#read(key, fallback, "an integer in 0 … 2^31 − 1", (value) =>
      Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 0x7fff_ffff ? (value as number) : undefined);
  }

  boolean(key: string, fallback?: boolean): boolean {
    return this.#read(key, fallback, "a boolean", (value) => (typeof value === "boolean" ? value : undefined));
  }

  strings(key: string): readonly string[] | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    if (!Array.isArray(value) || !value.every((element) => typeof element === "string")) throw this.#mismatch(key, "an array of strings", value);
    return value;
  }

  numbers(key: string): readonly number[] | Float32Array | Int32Array | undefined {
    const value = this.raw(key);
    if (value === undefined) return undefined;
    const expected = "an array of finite numbers";
    if (value instanceof Float32Array || value instanceof Int32Array || Array.isArray(value)) {
      for (let index = 0; index < value.length; index++) if (!Number.isFinite(value[index])) throw this.#mismatch(key, expected, value);
      return value;
    }
    if (value instanceof Int8Array || value instanceof Uint8Array || value instanceof Int16Array || value instanceof Uint16Array) return Int32Array.from(value);
    if (value instanceof Uint32Array || value instanceof Float64Array) {
      const numbers = Array.from(value);
      if (!numbers.every(Number.isFinite)) throw this.#mismatch(key, expected, value);
      return numbers;
    }
    throw this.#mismatch(key, expected, value);
  }

  #read<T>(key: string, fallback: T | undefined, expected: string, check: (value: unknown) => T | undefined): T {
    const value = this.raw(key);
    if (value === undefined) {
      if (fallback !== undefined) return fallback;
      throw new ModelFormatError(`Expected ${expected} for ${key} but the model's metadata has no such key`, { file: this.#file });
    }
    const checked = check(value);
    if (checked === undefined) throw this.#mismatch(key, expected, value);
    return checked;
  }

  #mismatch(key: string, expected: string, value: unknown): ModelFormatError {
    return new ModelFormatError(`Expected ${expected} for ${key} but received ${describe(value)}`, { file: this.#file });
  }
}

/**
 * Metadata of a GGUF file: one flat map, typed arrays for arrays of numbers. Long arrays of strings are kept as a
 * StringTable: `table()` gives it as it is, `raw()` and `strings()` make an array of it each time.
 */
export class MapMetadata extends TypedMetadata {
  readonly #values: ReadonlyMap<string, unknown>;

  constructor(values: ReadonlyMap<string, unknown>, file: string) {
    super(file);
    this.#values = values;
  }

  override has(key: string): boolean {
    return this.#values.has(key);
  }

  override raw(key: string): unknown {
    const value = this.#values.get(key);
    return value instanceof StringTable ? value.toArray() : value;
  }

  /** An array of strings without a string object for each; undefined where the key is absent. */
  table(key: string): StringTable | undefined {
    const value = this.#values.get(key);
    if (value instanceof StringTable) return value;
    const strings = this.strings(key);
    return strings === undefined ? undefined : StringTable.from(strings);
  }

  override keys(): Iterable<string> {
    return this.#values.keys();
  }
}

/** The parsed `config.json`: `null` counts as absent; "text_config.hidden_size" reaches into nested objects. */
export class JsonMetadata extends TypedMetadata {
  readonly #root: Readonly<Record<string, unknown>>;

  /** @param root an object without a prototype, as `toPlain` of json.ts makes it */
  constructor(root: Readonly<Record<string, unknown>>, file: string) {
    super(file);
    this.#root = root;
  }

  override raw(key: string): unknown {
    return own(this.#root, key) ?? this.#nested(key) ?? undefined;
  }

  override keys(): Iterable<string> {
    return Object.keys(this.#root);
  }

  #nested(key: string): unknown {
    let value: unknown = this.#root;
    for (const part of key.split(".")) value = own(value, part);
    return value;
  }
}

function own(value: unknown, key: string): unknown {
  return typeof value === "object" && value !== null && !Array.isArray(value) && Object.hasOwn(value, key)
    ? (value as Record<string, unknown>)[key]
    : undefined;
}
