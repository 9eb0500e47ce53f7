// What CMake is told where AddressSanitizer and UndefinedBehaviorSanitizer watch: the same for the native tests and for the addon, so that a
// compiler's cache serves both. BUILDING_NODE_EXTENSION means nothing to us: cmake-js defines it.
export const sanitizedFlags = {
  TL_SANITIZE: "address;undefined",
  CMAKE_BUILD_TYPE: "Sanitize",
  CMAKE_CXX_FLAGS: "-DBUILDING_NODE_EXTENSION",
  CMAKE_CXX_FLAGS_SANITIZE: "-O0", // what both insert takes an optimiser ten times as long as the tests take
};
/** This processor's own instruction sets, of which such a build need not hold all. */
export const sanitizedTargets = process.arch === "arm64" ? "SCALAR;NEON;NEONDOT" : "SCALAR;AVX2";
