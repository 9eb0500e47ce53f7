// How fast attention is, as a fraction of what the machine can do: f32 multiply-adds for prompts, memory reads for decoding.
// Usage: attention_bench [threads]. Best of several runs; peak and bandwidth are measured in the same process.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <random>
#include <vector>

#include "../../cpp/cache/kv.h"
#include "../../cpp/kernels/table.h"

namespace {

using namespace tl;

// CPU time of the process instead of the clock where TOKENLOOM_BENCH_CPU is set (one thread on a busy machine).
double seconds() {
  static const bool cpu = std::getenv("TOKENLOOM_BENCH_CPU") != nullptr;
  if (cpu) return double(std::clock()) / CLOCKS_PER_SEC;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename Function> double best(int runs, Function&& function) {
  double least = 1e30;
  for (int i = 0; i < runs; ++i) {
    const double start = seconds();
    function();
    least = std::min(least, seconds() - start);
  }
  return least;
}

#if defined(__x86_64__)
// Independent multiply-adds in ten registers.
__attribute__((target("avx2,fma"), noinline)) void spin(int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    __asm__ volatile(
        "vfmadd213ps %%ymm10, %%ymm10, %%ymm0\n vfmadd213ps %%ymm10, %%ymm10, %%ymm1\n vfmadd213ps %%ymm10, %%ymm10, %%ymm2\n"
        "vfmadd213ps %%ymm10, %%ymm10, %%ymm3\n vfmadd213ps %%ymm10, %%ymm10, %%ymm4\n vfmadd213ps %%ymm10, %%ymm10, %%ymm5\n"
        "vfmadd213ps %%ymm10, %%ymm10, %%ymm6\n vfmadd213ps %%ymm10, %%ymm10, %%ymm7\n vfmadd213ps %%ymm10, %%ymm10, %%ymm8\n"
        "vfmadd213ps %%ymm10, %%ymm10, %%ymm9" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9");
}
double peakFlops(ThreadPool& pool, int threads) {
  const int64_t n = 2000000;
  return threads * double(n) * 10 * 16 / best(9, [&] { pool.parallelFor(threads, 1, [&](int64_t, int64_t, int) { spin(n); }); });
}
#else
double peakFlops(ThreadPool&, int) { return 0; }
#endif

double readBandwidth(ThreadPool& pool, int threads) {
  static std::vector<uint64_t> memory(size_t(1) << 26, 1);  // 512 MiB
  volatile uint64_t sink = 0;
  const int64_t step = int64_t(memory.size()) / 64;
  (void)threads;
  return double(memory.size()) * 8 / best(4, [&] {
    pool.parallelFor(64, 1, [&](int64_t begin, int64_t end, int) {
      uint64_t sums[8] = {};
      for (const uint64_t *p = memory.data() + begin * step, *last = memory.data() + end * step; p < last; p += 8)
        for (int k = 0; k < 8; ++k) sums[k] += p[k];
      for (uint64_t sum : sums) sink = sink + sum;
    });
  });
}

struct Session {
  std::shared_ptr<KvPool> pool;
  std::unique_ptr<KvCache> cache;
  std::vector<float> query, key, value, out;
  int64_t heads, kvHeads, headDim;
  int layers;

  Session(int layerCount, int64_t h, int64_t g, int64_t d, DType element) : heads(h), kvHeads(g), headDim(d), layers(layerCount) {
    if (KvPool::create({layerCount, int32_t(g), int32_t(d), element}, 0, pool)) std::abort();
    cache = std::make_unique<KvCache>(pool);
  }
  static void fill(std::vector<float>& x, size_t n) {
    if (x.size() >= n) return;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    x.resize(n);
    for (float& v : x) v = normal(random);
  }
  static View rows(std::vector<float>& x, int64_t n, int64_t h, int64_t d) {
    const int64_t dims[] = {n, h, d};
    return contiguous(x.data(), DType::f32, 3, dims);
  }
  void step(Context& context, int64_t n, bool append, bool attend, double window = 0, double softcap = 0) {
    fill(query, size_t(n * heads * headDim));
    fill(key, size_t(n * kvHeads * headDim));
    fill(value, size_t(n * kvHeads * headDim));
    out.resize(query.size());
    if (cache->reserve(n)) std::abort();
    KvStep kv{cache.get(), n};
    View view;
    view.data = &kv;
    view.dtype = DType::cache;
    for (int layer = 0; layer < layers; ++layer) {
      const CacheAppendArgs a{rows(key, n, kvHeads, headDim), rows(value, n, kvHeads, headDim), view, double(layer)};
      const CachedAttentionArgs b{rows(query, n, heads, headDim), view, rows(out, n, heads, headDim), double(layer), 0.125, window, softcap, 0};
      const KernelTable& table = activeTable();
      if (append && table.kernels[size_t(Op::cacheAppend)](&a, context)) std::abort();
      if (attend && table.kernels[size_t(Op::cachedAttention)](&b, context)) std::abort();
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, threads);
  Context context{pool};
  const double peak = peakFlops(pool, threads), read = readBandwidth(pool, threads);
  std::printf("%s, %d thread(s): f32 peak %.1f GFLOP/s, memory read %.1f GB/s\n", isaName(activeTable().isa), threads, peak / 1e9, read / 1e9);
  struct Prompt { int64_t heads, kvHeads, headDim, tokens; DType element; double window, softcap; const char* name; };
  for (const Prompt& p : {Prompt{9, 3, 64, 512, DType::f16, 0, 0, "SmolLM2 512"}, Prompt{9, 3, 64, 2048, DType::f16, 0, 0, "SmolLM2 2048"},
                          Prompt{8, 8, 64, 2048, DType::f32, 0, 0, "f32 MHA 64"}, Prompt{8, 8, 128, 2048, DType::f32, 0, 0, "f32 MHA 128"},
                          Prompt{8, 2, 128, 2048, DType::bf16, 0, 0, "bf16 GQA 128"}, Prompt{4, 2, 256, 2048, DType::f16, 0, 0, "f16 GQA 256"},
                          Prompt{9, 3, 64, 2048, DType::f16, 0, 50, "softcap 50"}, Prompt{9, 3, 64, 2048, DType::f16, 256, 0, "window 256"}}) {
    Session s(1, p.heads, p.kvHeads, p.headDim, p.element);
    s.step(context, p.tokens, true, true, p.window, p.softcap);
    double pairs = 0;
    for (int64_t i = 0; i < p.tokens; ++i) pairs += double(p.window > 0 ? std::min<int64_t>(i + 1, int64_t(p.window)) : i + 1);
    const double flops = pairs * double(p.heads * p.headDim) * 4;
    const double time = best(7, [&] { s.step(context, p.tokens, false, true, p.window, p.softcap); });
    const double append = best(7, [&] { s.step(context, p.tokens, true, false); });
    std::printf("prompt %-14s %8.3f ms  %6.1f GFLOP/s  %5.1f %% of peak   append %.3f ms\n", p.name, time * 1e3, flops / time / 1e9, 100 * flops / time / peak, append * 1e3);
  }
  struct Decode { int64_t heads, kvHeads, headDim, past, queries; DType element; int layers; };
  for (const Decode& d : {Decode{9, 3, 64, 200, 1, DType::f16, 30}, Decode{9, 3, 64, 1800, 1, DType::f16, 30}, Decode{9, 3, 64, 8000, 1, DType::f16, 30},
                          Decode{32, 8, 128, 4096, 1, DType::f32, 4}, Decode{32, 8, 128, 4096, 1, DType::bf16, 8}, Decode{8, 8, 64, 32768, 1, DType::f32, 2},
                          Decode{9, 3, 64, 4096, 8, DType::f16, 30}, Decode{9, 3, 64, 4096, 60, DType::f16, 30}}) {
    Session s(d.layers, d.heads, d.kvHeads, d.headDim, d.element);
    for (int64_t at = 0; at < d.past; at += 512) {
      s.step(context, std::min<int64_t>(512, d.past - at), true, false);
      if (s.cache->commit(std::min<int64_t>(512, d.past - at))) std::abort();
    }
    s.step(context, d.queries, true, true);
    const double time = best(7, [&] { s.step(context, d.queries, false, true); }) / d.layers;
    const double append = best(7, [&] { s.step(context, d.queries, true, false); }) / d.layers;
    const double bytes = double(d.past + d.queries) * double(d.kvHeads * d.headDim) * 2 * double(elementBytes(d.element));
    const double flops = double(d.past) * double(d.queries * d.heads * d.headDim) * 4;
    std::printf("decode %2d/%d heads of %3d, %5d cached, %2d new, %d bytes an element: %8.1f us a layer  %6.2f GB/s (%3.0f %%)  %6.1f GFLOP/s (%3.0f %%)   append %.2f us\n",
                int(d.heads), int(d.kvHeads), int(d.headDim), int(d.past), int(d.queries), int(elementBytes(d.element)), time * 1e6, bytes / time / 1e9,
                100 * bytes / time / read, flops / time / 1e9, 100 * flops / time / peak, append * 1e6);
  }
  return 0;
}
