"use strict";
// Finds the addon: build/Release of a source checkout, or the prebuilt binary of this platform.
const path = require("node:path");
const load = require("node-gyp-build");

try {
  module.exports = load(path.join(__dirname, ".."));
} catch (error) {
  throw new Error(
    `tokenloom has no binary for ${process.platform}-${process.arch}: build one from a clone of its source with "npm ci && npm run build" (needs a C++20 compiler and CMake)`,
    { cause: error },
  );
}
