// Opens the instruction region and namespace of one target. A kernel file is compiled once per target with baseline
// compiler flags and -DTL_TARGET_AVX2 (or ..._SCALAR, ..._AVX512, ..._AVX512BF16, ..._NEON, ..._NEONDOT); it includes what it needs of
// the standard library and this header first, then everything to the end of the file is built for the target:
//
//   #include "../simd/target.h"
//   namespace tl::TL_TARGET { … }
//
// So no shared inline function (std::max …) is ever built with instructions that an older machine lacks.
// Only files of simd/ name intrinsics.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../core/checked.h"
#include "../core/dtype.h"
#include "../core/pool.h"
#include "../core/random.h"
#include "../core/status.h"
#include "../core/view.h"
#include "../kernels/operands.h"
#include "../kernels/quantized_rows.h"
#include "../kernels/table.h"

#if defined(TL_EMULATE_X86)  // test builds: AVX-512 on machines without it
#include "simde_intrinsics.h"
#elif defined(TL_TARGET_AVX2) || defined(TL_TARGET_AVX512) || defined(TL_TARGET_AVX512BF16)
#include <immintrin.h>
#elif defined(TL_TARGET_NEON) || defined(TL_TARGET_NEONDOT)
#include <arm_neon.h>
#endif

#if defined(TL_TARGET_AVX2)
#define TL_TARGET avx2
#define TL_TARGET_FEATURES "avx,avx2,fma,f16c,bmi,bmi2,popcnt"
#elif defined(TL_TARGET_AVX512)
#define TL_TARGET avx512
#define TL_TARGET_FEATURES "avx,avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#elif defined(TL_TARGET_AVX512BF16)
#define TL_TARGET avx512bf16
#define TL_TARGET_FEATURES "avx,avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
#elif defined(TL_TARGET_NEON)
#define TL_TARGET neon
#elif defined(TL_TARGET_NEONDOT)
#define TL_TARGET neondot
#if defined(__clang__)
#define TL_TARGET_FEATURES "dotprod"
#else
#define TL_TARGET_FEATURES "arch=armv8.2-a+dotprod"
#endif
#elif defined(TL_TARGET_SCALAR)
#define TL_TARGET scalar
#else
#error "compile kernel files with -DTL_TARGET_<NAME>"
#endif

#if defined(TL_TARGET_FEATURES) && !defined(TL_EMULATE_X86)
#define TL_STRINGIFY_(x) #x
#define TL_STRINGIFY(x) TL_STRINGIFY_(x)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(TL_TARGET_FEATURES))), apply_to = function)
#elif defined(__GNUC__)
_Pragma(TL_STRINGIFY(GCC target(TL_TARGET_FEATURES)))
#endif
#endif

namespace tl::TL_TARGET {
constexpr Isa kIsa = Isa::TL_TARGET;
}

// Not forced where each intrinsic is a page of C, or each access is watched: inlined tiles would compile for an hour.
#if defined(TL_EMULATE_X86) || defined(TL_SANITIZED)
#define TL_INLINE inline
#else
#define TL_INLINE inline __attribute__((always_inline))
#endif

#if defined(TL_TARGET_SCALAR)
#include "scalar.h"
#elif defined(TL_TARGET_AVX2)
#include "avx2.h"
#elif defined(TL_TARGET_NEON) || defined(TL_TARGET_NEONDOT)
#include "neon.h"
#else
#include "avx512.h"
#endif
#include "math.h"
