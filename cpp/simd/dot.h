// Integer dot products of the quantised matmul. A Bytes register holds four consecutive columns of kLanes rows, row by
// row: [kLanes][4]. Every sum below is exact. Include after target.h. What each target defines:
//
//   Bytes                      the register; loadVector / storeVector move it, memory need not be aligned
//   broadcastQuad(p)           four activation bytes for every row
//   splitNibbles(b, low, high) the unsigned low and high nibbles of every byte
//   NibbleSum                  Σ of u4 weights times s8 activations for kLanes rows: nibbleZero(), dot(sum, weight, x) at
//                              most eight times, total(sum)
//   ByteSum                    Σ of s8 weights times s8 activations (no activation is −128): byteStart(Σ activations),
//                              dot(sum, prepareByte(weight), x) at most eight times, total(sum)
//   kByteBias                  the target keeps a weight byte w as uint8(w) ^ kByteBias
#pragma once

#if defined(TL_TARGET_SCALAR)
#include "dot_scalar.h"
#elif defined(TL_TARGET_AVX2)
#include "dot_avx2.h"
#elif defined(TL_TARGET_NEON) || defined(TL_TARGET_NEONDOT)
#include "dot_neon.h"
#else
#include "dot_avx512.h"
#endif
