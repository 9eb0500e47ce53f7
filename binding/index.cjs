"use strict";
// Finds the addon: build/Release of a source checkout, the prebuilds/ of a package packed for one platform, or this platform's own
// package, which npm installs beside this one (scripts/pack.mjs).
const path = require("node:path");
const load = require("node-gyp-build");

const platform = `${process.platform}-${process.arch}`;

/** What the first loader that finds a binary gives. Where an old npm installed those of both C libraries, one of them does not load. */
function firstOf(loaders) {
  let problem;
  for (const loader of loaders) {
    try {
      return loader();
    } catch (error) {
      if (error.code === "ERR_DLOPEN_FAILED" || problem === undefined) problem = error;
    }
  }
  const found =
    problem.code === "ERR_DLOPEN_FAILED"
      ? `tokenloom's binary for ${platform} does not load here (${problem.message.split("\n")[0]})`
      : `tokenloom has no binary for ${platform} (npm brings one with --include=optional where it has one)`;
  throw new Error(`${found}: build one from a clone of its source with "npm ci && npm run build" (needs a C++20 compiler and CMake)`, { cause: problem });
}

module.exports = firstOf([() => load(path.join(__dirname, "..")), () => require(`@tokenloom/${platform}`), () => require(`@tokenloom/${platform}-musl`)]);
