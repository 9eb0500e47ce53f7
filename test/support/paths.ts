import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** A file of the shared data (TOKENLOOM_SHARED, or the folder beside the checkout), undefined where it is not there. */
export function sharedFile(...parts: string[]): string | undefined {
  const path = join(process.env["TOKENLOOM_SHARED"] ?? join(process.cwd(), "..", "shared"), ...parts);
  return existsSync(path) ? path : undefined;
}

/** A model in the folder TOKENLOOM_MODELS, undefined where it is not there. */
export function modelPath(name: string): string | undefined {
  const folder = process.env["TOKENLOOM_MODELS"];
  const path = folder === undefined ? undefined : join(folder, name);
  return path !== undefined && existsSync(path) ? path : undefined;
}

export const SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf";

/** For the `skip` of a test that needs these files: a reason, or false. */
export function skipWithout(what: Readonly<Record<string, string | undefined>>): string | false {
  const missing = Object.entries(what).filter(([, path]) => path === undefined).map(([name]) => name);
  return missing.length === 0 ? false : `${missing.join(" and ")} not found: set TOKENLOOM_MODELS and TOKENLOOM_SHARED`;
}

/** A folder that goes away with the test. */
export function scratch(test: { teardown(run: () => void): void }): { path: string; write(name: string, bytes: string | Uint8Array): string } {
  const path = mkdtempSync(join(tmpdir(), "tokenloom-test-"));
  test.teardown(() => rmSync(path, { recursive: true, force: true }));
  return {
    path,
    write(name, bytes) {
      const file = join(path, name);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, bytes);
      return file;
    },
  };
}
