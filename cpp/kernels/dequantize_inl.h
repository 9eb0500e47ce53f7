// Decodes the block types of GGUF files, thirty-two columns at a time, into what packing stores: small integers with a
// scale and a minimum for each sixteen of them. Exactly the arithmetic of the format: every product of a scale below fits
// f32 (an 11-bit times an 8-bit significand), so nothing is rounded here. Include after simd/target.h.
#pragma once

#include "packed_weight.h"

namespace tl::TL_TARGET {

// w = scale · q + minimum. Where the packed form has no minimum: w = scale · (q − 8) for int4, scale · q for int8.
struct DecodedBlock {
  int8_t q[32];
  float scale[2], minimum[2];  // of columns 0 … 15 and 16 … 31
};

TL_INLINE float halfAt(const uint8_t* p) {
  f16 value;
  std::memcpy(&value, p, 2);
  return toFloat(value);
}

TL_INLINE void setScales(DecodedBlock& out, float scale, float minimum) {
  out.scale[0] = out.scale[1] = scale;
  out.minimum[0] = out.minimum[1] = minimum;
}

// Column j is the low nibble of byte j, column 16 + j the high one.
TL_INLINE void splitBlockNibbles(const uint8_t* qs, DecodedBlock& out) {
  for (int j = 0; j < 16; ++j) out.q[j] = int8_t(qs[j] & 15), out.q[j + 16] = int8_t(qs[j] >> 4);
}

// Adds the fifth bit: bit j of the little-endian word is that of column j.
TL_INLINE void addFifthBits(const uint8_t* bits, int offset, DecodedBlock& out) {
  for (int j = 0; j < 32; ++j) out.q[j] = int8_t((out.q[j] | ((bits[j / 8] >> (j % 8)) & 1) << 4) - offset);
}

// The 6-bit scale and minimum of part i = 0 … 7 of Q4_K and Q5_K.
TL_INLINE void scaleAndMinimum(const uint8_t* scales, int i, int& scale, int& minimum) {
  if (i < 4) {
    scale = scales[i] & 63;
    minimum = scales[i + 4] & 63;
  } else {
    scale = (scales[i + 4] & 15) | (scales[i - 4] >> 6) << 4;
    minimum = scales[i + 4] >> 4 | (scales[i] >> 6) << 4;
  }
}

// Q2_K: scales[16], qs[64], d, dmin. Part i of 32 columns: byte 32 (i / 4) + j, bits 2 (i mod 4).
inline void decodeQ2K(const uint8_t* block, int i, DecodedBlock& out) {
  const uint8_t* qs = block + 16 + 32 * (i / 4);
  for (int j = 0; j < 32; ++j) out.q[j] = int8_t((qs[j] >> (2 * (i % 4))) & 3);
  for (int half = 0; half < 2; ++half) {
    const int packed = block[2 * i + half];
    out.scale[half] = halfAt(block + 80) * float(packed & 15);
    out.minimum[half] = -(halfAt(block + 82) * float(packed >> 4));
  }
}

// Q3_K: hmask[32], qs[64], scales[12], d. q − 4 where the high bit is clear; kept as q + 8 with zero point 8.
inline void decodeQ3K(const uint8_t* block, int i, DecodedBlock& out) {
  const uint8_t *qs = block + 32 + 32 * (i / 4), *scales = block + 96;
  for (int j = 0; j < 32; ++j) out.q[j] = int8_t(((qs[j] >> (2 * (i % 4))) & 3) + ((block[j] >> i) & 1 ? 8 : 4));
  for (int half = 0; half < 2; ++half) {
    const int s = 2 * i + half;
    const int low = (scales[s % 8] >> (4 * (s / 8))) & 15, high = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
    out.scale[half] = halfAt(block + 108) * float((low | high << 4) - 32);
    out.minimum[half] = 0;
  }
}

// Q4_K: d, dmin, scales[12], qs[128]; Q5_K has qh[32] before qs. Two parts share 32 bytes of qs.
inline void decodeQ45K(const uint8_t* block, int i, bool five, DecodedBlock& out) {
  const uint8_t *qh = block + 16, *qs = block + (five ? 48 : 16) + 32 * (i / 2);
  for (int j = 0; j < 32; ++j) {
    const int q = (qs[j] >> (4 * (i % 2))) & 15;
    out.q[j] = int8_t(five ? q | ((qh[j] >> i) & 1) << 4 : q);
  }
  int scale, minimum;
  scaleAndMinimum(block + 4, i, scale, minimum);
  setScales(out, halfAt(block) * float(scale), -(halfAt(block + 2) * float(minimum)));
}

// Q6_K: ql[128], qh[64], scales[16] signed, d. Each 128 columns take 64 bytes of ql and 32 of qh.
inline void decodeQ6K(const uint8_t* block, int i, DecodedBlock& out) {
  const int part = i % 4;
  const uint8_t *ql = block + 64 * (i / 4) + 32 * (part % 2), *qh = block + 128 + 32 * (i / 4);
  for (int j = 0; j < 32; ++j)
    out.q[j] = int8_t((((ql[j] >> (4 * (part / 2))) & 15) | ((qh[j] >> (2 * part)) & 3) << 4) - 32);
  for (int half = 0; half < 2; ++half) {
    out.scale[half] = halfAt(block + 208) * float(int8_t(block[192 + 2 * i + half]));
    out.minimum[half] = 0;
  }
}

inline void decodeIQ4NL(const uint8_t* block, DecodedBlock& out) {
  constexpr int8_t kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  splitBlockNibbles(block + 2, out);
  for (int8_t& q : out.q) q = kValues[q];
  setScales(out, halfAt(block), 0);
}

// Columns 32 · part … 32 · part + 31 of a stored row of a block type.
inline void decodeColumns(Storage storage, const uint8_t* row, int64_t part, DecodedBlock& out) {
  const int64_t parts = storageBlockElements(storage) / 32;
  const uint8_t* block = row + part / parts * storageBlockBytes(storage);
  const int i = int(part % parts);
  switch (storage) {
    case Storage::q4_0: splitBlockNibbles(block + 2, out); return setScales(out, halfAt(block), 0);
    case Storage::q4_1: splitBlockNibbles(block + 4, out); return setScales(out, halfAt(block), halfAt(block + 2));
    case Storage::q5_0:
      splitBlockNibbles(block + 6, out);
      addFifthBits(block + 2, 16, out);
      return setScales(out, halfAt(block), 0);
    case Storage::q5_1:
      splitBlockNibbles(block + 8, out);
      addFifthBits(block + 4, 0, out);
      return setScales(out, halfAt(block), halfAt(block + 2));
    case Storage::q8_0: std::memcpy(out.q, block + 2, 32); return setScales(out, halfAt(block), 0);
    case Storage::q2_k: return decodeQ2K(block, i, out);
    case Storage::q3_k: return decodeQ3K(block, i, out);
    case Storage::q4_k: return decodeQ45K(block, i, false, out);
    case Storage::q5_k: return decodeQ45K(block, i, true, out);
    case Storage::q6_k: return decodeQ6K(block, i, out);
    case Storage::iq4_nl: return decodeIQ4NL(block, out);
    default: return;  // plain types are packed without decoding
  }
}

}  // namespace tl::TL_TARGET
