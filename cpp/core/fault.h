// Exceptions thrown on purpose, and operator new that may fail, in builds with TL_FAULTS (tests only, scripts/build-faults.mjs).
// In all others a fault point is nothing.
#pragma once

namespace tl {

#if defined(TL_FAULTS)
enum class Thrown { nothing, exception, badAlloc, integer };
// The next fault point of this name throws, once. `place` must be a literal.
void throwAt(const char* place, Thrown what);
void faultPoint(const char* place);
#else
inline void faultPoint(const char*) {}
#endif

}  // namespace tl
