// cacheRotate: cached keys stand at dense positions again. A key that was rotated (arXiv 2104.09864) at position p and is to
// stand at t is rotated by t − p, since rotations add up (arXiv 2309.17453, 2408.00167). t = slot + (longest head − the
// head's length): the newest tokens of all heads stand side by side, so heads of other lengths keep their distances to what
// comes next. Angles in f64. int8 and int4 keys are quantised anew; keys that stand right are not touched.
#include <atomic>

#include "../cache/kv.h"
#include "../simd/target.h"
#include "cache_rows_inl.h"
#include "cache_write_inl.h"

namespace tl::TL_TARGET {
namespace {

// Cosines and sines [frequencies][32], a lane a token. Neighbours mostly move by the same distance, from page to page too:
// what was computed for a distance is used as long as the thread meets it.
struct RotationTable {
  const int64_t* frequencies;  // bits of doubles
  int64_t half;
  float *cosine, *sine;
  int64_t distance[kPanelKeys];
  void clear() { std::fill(distance, distance + kPanelKeys, std::numeric_limits<int64_t>::max()); }
  void set(int lane, int64_t wanted) {
    if (distance[lane] == wanted) return;
    const int known = lane > 0 && distance[lane - 1] == wanted ? lane - 1 : -1;
    for (int64_t i = 0; i < half; ++i) {
      float *c = cosine + i * kPanelKeys, *s = sine + i * kPanelKeys;
      if (known >= 0) {
        c[lane] = c[known];
        s[lane] = s[known];
        continue;
      }
      double frequency;
      std::memcpy(&frequency, frequencies + i, sizeof frequency);
      c[lane] = float(std::cos(double(wanted) * frequency));
      s[lane] = float(std::sin(double(wanted) * frequency));
    }
    distance[lane] = wanted;
  }
};

// Pairs (a, b) of the lanes in `moved` become (a cos − b sin, b cos + a sin).
void rotatePanel(float* panel, const RotationTable& table, bool interleaved, uint32_t moved) {
  for (int64_t i = 0; i < table.half; ++i) {
    float* first = panel + (interleaved ? 2 * i : i) * kPanelKeys;
    float* second = first + (interleaved ? 1 : table.half) * kPanelKeys;
    for (int v = 0; v < kPanelKeys; v += kLanes) {
      const F32 a = load(first + v), b = load(second + v), c = load(table.cosine + i * kPanelKeys + v), s = load(table.sine + i * kPanelKeys + v);
      const Mask lanes = lanesOfBits(moved >> v);
      store(first + v, select(lanes, sub(mul(a, c), mul(b, s)), a));
      store(second + v, select(lanes, add(mul(b, c), mul(a, s)), b));
    }
  }
}

void writeKeys(KvPage& page, const KvLayout& layout, const float* panel, uint32_t moved, float* token) {
  if (isQuantized(page.element)) {
    for (; moved != 0; moved &= moved - 1) {
      const int slot = __builtin_ctz(moved);
      for (int64_t d = 0; d < layout.headDim; ++d) token[d] = panel[d * kPanelKeys + slot];
      if (page.element == DType::i8) writeInt8Key(page, layout, slot, token);
      else writeToken(page, layout, slot, token, nullptr);
    }
    return;
  }
  for (int64_t d = 0; d < layout.headDim; ++d, panel += kPanelKeys) {
    if (page.element == DType::f32) convertLanes(reinterpret_cast<float*>(page.keys()) + d * kPanelKeys, panel, kPanelKeys);
    else if (page.element == DType::f16) convertLanes(reinterpret_cast<f16*>(page.keys()) + d * kPanelKeys, panel, kPanelKeys);
    else convertLanes(reinterpret_cast<bf16*>(page.keys()) + d * kPanelKeys, panel, kPanelKeys);
  }
}

}  // namespace

Status cacheRotate(const CacheRotateArgs& args, Context& context) {
  constexpr const char* op = "cacheRotate";
  CachedLayer cached;
  TL_TRY(cached.open(op, args.cache, args.layer));
  const View& frequencies = args.frequencies;
  const int64_t headDim = cached.headDim(), half = frequencies.dims[0], longest = cached.cache->length();
  if (frequencies.dtype != DType::i64 || frequencies.rank != 1 || (half > 1 && frequencies.strides[0] != 1)) return argumentError(op, "frequencies", "must be one row of i64 (bits of doubles)", frequencies.rank);
  if (half < 1 || 2 * half > headDim) return shapeError(op, "frequencies", "must be at most half the head dimension", headDim / 2, half);
  if (cached.step->newTokens != 0) return argumentError(op, "cache", "must not be rotated within a step", cached.step->newTokens);
  if (2 * cached.panelFloats() + headDim > kScratchFloats) return shapeError(op, "cache", "has too large a head dimension", kScratchFloats / 65, headDim);
  const int64_t pieces = ceilDiv(cached.longest, kPageTokens);
  std::atomic<bool> shared{false};
  context.pool.parallelFor(cached.heads() * pieces, std::max<int64_t>(pieces / 4, 1), [&](int64_t begin, int64_t end, int thread) {
    float* panel = reinterpret_cast<float*>(context.pool.scratch(thread));
    float* cosine = panel + cached.panelFloats();
    RotationTable table{frequencies.as<int64_t>(), half, cosine, cosine + half * kPanelKeys, {}};
    float* token = cosine + 2 * half * kPanelKeys;
    table.clear();
    for (int64_t i = begin; i < end; ++i) {
      const int32_t head = int32_t(i / pieces);
      const int64_t first = i % pieces * kPageTokens, offset = longest - cached.tokens(head);
      const int count = int(std::min<int64_t>(cached.tokens(head) - first, kPageTokens));
      if (count <= 0) continue;
      KvPage& page = *cached.cache->pages(cached.layer, head)[first / kPageTokens];
      uint32_t moved = 0;
      for (int j = 0; j < count; ++j)
        if (page.positions[j] != first + j + offset) moved |= uint32_t(1) << j;
      if (moved == 0) continue;
      if (page.references.load(std::memory_order_acquire) != 1) {
        shared.store(true, std::memory_order_relaxed);
        continue;
      }
      for (int j = 0; j < count; ++j)
        if (moved >> j & 1) table.set(j, first + j + offset - page.positions[j]);
      loadKeyPanel(cached.source(head), first, count, Ahead{}, panel);
      rotatePanel(panel, table, args.interleaved != 0, moved);
      writeKeys(page, cached.cache->layout(page.element), panel, moved, token);
      for (int j = 0; j < count; ++j) page.positions[j] = int32_t(first + j + offset);
    }
  });
  return shared.load() ? argumentError(op, "cache", "shares pages that would change: they must be kept with `dense` first") : Status{};
}

}  // namespace tl::TL_TARGET
