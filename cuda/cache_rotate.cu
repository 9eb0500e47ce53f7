// cacheRotate: cached keys stand at dense positions again, see cpp/kernels/cache_rotate.cpp. A block a page: keys come to shared
// memory, pairs are rotated, a warp writes a token back in the page's element type.
#include "cache_pages.cuh"

namespace tl::cuda {
namespace {

__global__ void __launch_bounds__(kCacheThreads) rotatePages(Pages pages, const double* frequencies, int half, bool interleaved, int32_t longest) {
  Shared shared;
  float* keys = shared.take<float>(kPageTokens * pages.dim);
  const int32_t head = int32_t(blockIdx.y), first = int32_t(blockIdx.x) * kPageTokens, tokens = pages.lengths[head], count = min(tokens - first, kPageTokens);
  if (count <= 0) return;
  KvPage* page = pages.page(head, first);
  const int32_t target = first + longest - tokens;
  const int dim = int(pages.dim);
  for (int i = int(threadIdx.x); i < kPageTokens * dim; i += int(blockDim.x))
    if (i % kPageTokens < count) keys[i] = pageElement<Part::keys>(page, dim, i % kPageTokens, i / kPageTokens);
  __syncthreads();
  for (int i = int(threadIdx.x); i < half * kPageTokens; i += int(blockDim.x)) {
    const int slot = i % kPageTokens, pair = i / kPageTokens;
    if (slot >= count || page->positions[slot] == target + slot) continue;
    const double angle = double(int64_t(target) + slot - page->positions[slot]) * frequencies[pair];
    const float c = float(cos(angle)), s = float(sin(angle));
    float &a = keys[(interleaved ? 2 * pair : pair) * kPageTokens + slot], &b = keys[(interleaved ? 2 * pair + 1 : pair + half) * kPageTokens + slot];
    const float turned = a * c - b * s;
    b = b * c + a * s;
    a = turned;
  }
  __syncthreads();
  for (int slot = warpIndex(); slot < count; slot += int(blockDim.x) / kWarp) {
    if (page->positions[slot] == target + slot) continue;  // stands right: not touched
    writeToken<Part::keys>(page, dim, slot, [&](int64_t d) { return keys[d * kPageTokens + slot]; });
  }
  __syncthreads();
  if (int(threadIdx.x) < count) page->positions[threadIdx.x] = target + int32_t(threadIdx.x);
}

}  // namespace

Status cacheRotate(const CacheRotateArgs& args, DeviceContext& context) {
  constexpr const char* op = "cacheRotate";
  CacheLayer layer;
  Pages pages;
  TL_TRY(openPages(op, args.cache, args.layer, context, layer, pages));
  const DeviceCache& cache = *layer.cache;
  const View& frequencies = args.frequencies;
  TL_TRY(checkType(op, "frequencies", frequencies, DType::i64, -1));
  const int64_t half = frequencies.dims[0];
  if (half < 1 || 2 * half > pages.dim) return shapeError(op, "frequencies", "must be at most half the head dimension", pages.dim / 2, half);
  if (cache.newTokens != 0) return argumentError(op, "cache", "must not be rotated within a step", cache.newTokens);
  if (pages.dim > 512) return shapeError(op, "cache", "has too large a head dimension", 512, pages.dim);
  int64_t longest = 0;
  for (int32_t i = 0; i < cache.shape.layers * cache.shape.kvHeads; ++i) longest = std::max(longest, cache.lengths[i]);
  TL_TRY(synchronize(context));  // the host looks at pages
  for (int32_t head = 0; head < pages.kvHeads; ++head)
    for (int64_t j = 0; j < layer.length(head); ++j) {
      const KvPage* page = cache.pages[layer.layer * pages.kvHeads + head][j / kPageTokens];
      if (page->positions[j % kPageTokens] != j + longest - layer.length(head) && page->references.load(std::memory_order_acquire) != 1)
        return argumentError(op, "cache", "shares pages that would change: they must be kept with `dense` first");
    }
  return launch(op, context, rotatePages, dim3(unsigned(ceilDiv(layer.mostKeys, kPageTokens)), unsigned(pages.kvHeads)), dim3(kCacheThreads), sharedBytes<float>(kPageTokens * pages.dim), pages,
                frequencies.as<const double>(), int(half), args.interleaved != 0, int32_t(longest));
}

}  // namespace tl::cuda
