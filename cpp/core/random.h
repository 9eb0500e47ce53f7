// Counter-based random numbers: the n-th number of a stream is a function of (seed, stream, n), so results depend on no
// state, thread or order. Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once
#include <cstdint>

namespace tl {

struct Random4 { uint32_t word[4]; };

constexpr Random4 philox(uint64_t seed, uint64_t stream, uint64_t position) {
  uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), uint32_t(stream), uint32_t(stream >> 32)};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c[0], p1 = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t next[4] = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1, uint32_t(p0)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

// Uniform in [0, 1), 53 bits.
constexpr double uniform(uint64_t seed, uint64_t stream, uint64_t position) {
  const Random4 r = philox(seed, stream, position);
  return double(((uint64_t(r.word[0]) << 32 | r.word[1]) >> 11)) * 0x1.0p-53;
}

}  // namespace tl
