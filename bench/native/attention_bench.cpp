// How fast attention is, as a fraction of what the machine can do: f32 multiply-adds for prompts, memory reads for decoding.
// Usage: attention_bench [threads] [prompt|decode|variants|cache …]. Best of several runs, peak and bandwidth measured in the
// same process, each again before its section: a busy host changes both.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../../cpp/cache/kv.h"
#include "../../cpp/kernels/table.h"
#include "limits.h"

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

struct Machine {
  Context& context;
  int threads;
  double peak = 0, read = 0;
  void measure() {
    peak = threads * limits::multiplyAddPeak();
    read = limits::readBandwidth(threads);
    std::printf("%s, %d thread(s): f32 peak %.1f GFLOP/s, memory read %.1f GB/s\n", isaName(activeTable().isa), threads, peak / 1e9, read / 1e9);
  }
};

const char* nameOf(DType type) { return type == DType::f32 ? "f32" : type == DType::f16 ? "f16" : type == DType::bf16 ? "bf16" : "int8"; }

template <typename Args> void call(Context& context, Op op, const Args& args) {
  const Status status = activeTable().kernels[size_t(op)](&args, context);
  if (!status) return;
  std::printf("%s %s: %s\n", status.op, status.argument, status.message);
  std::abort();
}

// Random numbers in any element type.
struct Numbers {
  std::vector<std::byte> data;
  DType dtype;
  Numbers(int64_t count, DType type) : data(size_t(count) * elementBytes(type)), dtype(type) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) {
      const float x = normal(random);
      if (type == DType::f16) reinterpret_cast<f16*>(data.data())[i] = toF16(x);
      else if (type == DType::bf16) reinterpret_cast<bf16*>(data.data())[i] = toBf16(x);
      else if (type == DType::i8) reinterpret_cast<int8_t*>(data.data())[i] = int8_t(x * 40);
      else reinterpret_cast<float*>(data.data())[i] = x;
    }
  }
  View view(std::vector<int64_t> dims) { return contiguous(data.data(), dtype, int(dims.size()), dims.data()); }
};

struct Dense {
  int64_t heads, kvHeads, queries, keys, headDim;
  DType type;
  bool causal;
};

// Seconds of `attention` on [1, heads, queries, headDim]; `change` may alter the operands.
double dense(Machine& machine, const Dense& d, const std::function<void(AttentionArgs&)>& change = [](AttentionArgs&) {}) {
  Numbers query(d.heads * d.queries * d.headDim, d.type == DType::i8 ? DType::f32 : d.type), key(d.kvHeads * d.keys * d.headDim, d.type), value(d.kvHeads * d.keys * d.headDim, d.type);
  Numbers out(d.heads * d.queries * d.headDim, DType::f32), logSumExp(d.heads * d.queries, DType::f32), scale(d.kvHeads * d.keys, DType::f32);
  AttentionArgs args{};
  args.query = query.view({1, d.heads, d.queries, d.headDim});
  args.key = key.view({1, d.kvHeads, d.keys, d.headDim});
  args.value = value.view({1, d.kvHeads, d.keys, d.headDim});
  args.out = out.view({1, d.heads, d.queries, d.headDim});
  args.logSumExp = logSumExp.view({1, d.heads, d.queries});
  if (d.type == DType::i8) {
    args.quantized = 1;
    args.keyScale = args.valueScale = scale.view({1, d.kvHeads, d.keys});
  }
  args.causal = d.causal;
  args.scale = 1 / std::sqrt(double(d.headDim));
  change(args);
  return best(d.queries > 500 ? 7 : 20, [&] { call(machine.context, Op::attention, args); });
}

double flopsOf(const Dense& d) {
  const double pairs = d.causal ? double(d.keys - d.queries) * double(d.queries) + double(d.queries) * double(d.queries + 1) / 2 : double(d.queries) * double(d.keys);
  return pairs * double(d.heads * d.headDim) * 4;
}

void prompts(Machine& machine) {
  machine.measure();
  for (const Dense& d : {Dense{8, 8, 2048, 2048, 64, DType::f32, false}, Dense{8, 8, 2048, 2048, 64, DType::f32, true}, Dense{4, 4, 2048, 2048, 128, DType::f32, false},
                         Dense{4, 4, 2048, 2048, 128, DType::f32, true}, Dense{8, 2, 2048, 2048, 64, DType::bf16, false}, Dense{8, 2, 2048, 2048, 64, DType::f16, true}}) {
    const double time = dense(machine, d), rate = flopsOf(d) / time;
    std::printf("prompt %ld/%ld heads of %ld, %ld tokens, %s%s: %.2f ms  %.1f GFLOP/s  %.0f %% of peak\n", long(d.heads), long(d.kvHeads), long(d.headDim), long(d.queries),
                nameOf(d.type), d.causal ? ", causal" : "", time * 1e3, rate / 1e9, 100 * rate / machine.peak);
  }
}

void decodes(Machine& machine) {
  machine.measure();
  for (int64_t keys : {4096, 32768})
    for (DType type : {DType::f32, DType::bf16, DType::i8})
      for (int64_t heads : {8, 32}) {
        const Dense d{heads, 8, 1, keys, 128, type, false};
        const double time = dense(machine, d), rate = double(d.kvHeads * keys * d.headDim * 2) * double(elementBytes(type)) / time;
        std::printf("decode %ld/8 heads of 128, %ld keys, %s: %.0f us  %.1f GB/s  %.0f %% of read\n", long(heads), long(keys), nameOf(type), time * 1e6, rate / 1e9, 100 * rate / machine.read);
      }
}

// What each variant costs over the plain loop, taken in turns.
void variants(Machine& machine) {
  machine.measure();
  const Dense d{8, 8, 2048, 2048, 64, DType::f32, true};
  Numbers sums(8 * 2048, DType::f32), slopes(8, DType::f32), bias(2048 * 2048, DType::f32);
  std::vector<int32_t> table(8 * 64), lengths(8, 2048);
  for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t((i * 37) % table.size());
  const auto columns = [&](int64_t queries) {
    return [&sums, queries](AttentionArgs& args) {
      args.columnSums = sums.view({1, 8, 2048});
      args.columnQueries = double(queries);
    };
  };
  const int64_t tableDims[] = {1, 8, 64}, lengthDims[] = {1, 8};
  const std::pair<const char*, std::function<void(AttentionArgs&)>> all[] = {
      {"soft-cap", [](AttentionArgs& args) { args.softcap = 50; }},
      {"slopes", [&](AttentionArgs& args) { args.slopes = slopes.view({8}); }},
      {"dense bias", [&](AttentionArgs& args) { args.bias = bias.view({1, 1, 2048, 2048}); }},
      {"column sums of 64 queries", columns(64)},
      {"column sums of all queries", columns(2048)},
      {"block table, pages of 32", [&](AttentionArgs& args) {
         args.key = contiguous(args.key.data, DType::f32, 3, std::vector<int64_t>{512, 32, 64}.data());
         args.value = contiguous(args.value.data, DType::f32, 3, std::vector<int64_t>{512, 32, 64}.data());
         args.blockTable = contiguous(table.data(), DType::i32, 3, tableDims);
         args.lengths = contiguous(lengths.data(), DType::i32, 2, lengthDims);
       }},
      {"window 256", [](AttentionArgs& args) { args.window = 256; }},
  };
  for (const auto& [name, change] : all) {
    double plain = 1e30, variant = 1e30;
    for (int turn = 0; turn < 3; ++turn) {
      plain = std::min(plain, dense(machine, d));
      variant = std::min(variant, dense(machine, d, change));
    }
    std::printf("%s: %.2f ms, plain %.2f ms, ratio %.2f\n", name, variant * 1e3, plain * 1e3, variant / plain);
  }
  for (int64_t nodes : {8, 60}) {  // a draft tree over 4,096 cached keys
    std::vector<int32_t> mask(size_t(nodes * 2), 0);
    for (int64_t i = 0; i < nodes; ++i)
      for (int64_t j = i;; j = (j - 1) / 2) {
        mask[size_t(i * 2 + j / 32)] |= int32_t(uint32_t(1) << (j % 32));
        if (j == 0) break;
      }
    const Dense tree{8, 8, nodes, 4096 + nodes, 64, DType::f32, false};
    const int64_t maskDims[] = {nodes, 2};
    const double one = dense(machine, {8, 8, 1, 4096, 64, DType::f32, false});
    const double time = dense(machine, tree, [&](AttentionArgs& args) {
      args.maskShape = 2;
      args.mask = contiguous(mask.data(), DType::i32, 2, maskDims);
    });
    std::printf("tree of %ld nodes behind 4096 keys: %.0f us, one token %.0f us, ratio %.2f, %.0f %% of peak\n", long(nodes), time * 1e6, one * 1e6, time / one, 100 * flopsOf(tree) / time / machine.peak);
  }
}

// The language model's own ops: cacheAppend and cachedAttention over `layers` caches.
struct Session {
  std::shared_ptr<KvPool> pool;
  std::unique_ptr<KvCache> cache;
  int64_t heads, kvHeads, headDim, layers;

  Session(int64_t layerCount, int64_t h, int64_t g, int64_t d, DType element) : heads(h), kvHeads(g), headDim(d), layers(layerCount) {
    if (KvPool::create({int32_t(layerCount), int32_t(g), int32_t(d), element}, 0, pool)) std::abort();
    cache = std::make_unique<KvCache>(pool);
  }
  // Seconds a layer of the step's appending and of its attention.
  std::pair<double, double> step(Machine& machine, int64_t n, int runs) {
    Numbers query(n * heads * headDim, DType::f32), key(n * kvHeads * headDim, DType::f32), value(n * kvHeads * headDim, DType::f32), out(n * heads * headDim, DType::f32);
    if (cache->reserve(n)) std::abort();
    KvStep kv{cache.get(), n};
    View view;
    view.data = &kv;
    view.dtype = DType::cache;
    const auto each = [&](const std::function<void(double)>& body) {
      return best(runs, [&] { for (int64_t layer = 0; layer < layers; ++layer) body(double(layer)); }) / double(layers);
    };
    const double append = each([&](double layer) { call(machine.context, Op::cacheAppend, CacheAppendArgs{key.view({n, kvHeads, headDim}), value.view({n, kvHeads, headDim}), view, layer}); });
    const double attend = each([&](double layer) {
      call(machine.context, Op::cachedAttention, CachedAttentionArgs{query.view({n, heads, headDim}), view, {}, out.view({n, heads, headDim}), {}, {}, layer, 0.125, 0, 0, 0, 0});
    });
    return {append, attend};
  }
};

void caches(Machine& machine) {
  machine.measure();
  for (int64_t tokens : {512, 2048}) {
    const auto [append, attend] = Session(1, 9, 3, 64, DType::f16).step(machine, tokens, 7);
    const double flops = flopsOf({9, 3, tokens, tokens, 64, DType::f16, true});
    std::printf("SmolLM2 prompt of %ld: attention %.2f ms a layer, %.1f GFLOP/s, %.0f %% of peak; append %.3f ms\n", long(tokens), attend * 1e3, flops / attend / 1e9,
                100 * flops / attend / machine.peak, append * 1e3);
  }
  for (int64_t past : {200, 1800, 8000})
    for (int64_t n : {1, 8}) {
      Session session(30, 9, 3, 64, DType::f16);
      for (int64_t at = 0; at < past; at += 200) {
        session.step(machine, 200, 1);
        if (session.cache->commit(200)) std::abort();
      }
      const auto [append, attend] = session.step(machine, n, 7);
      const double bytes = double(past + n) * 3 * 64 * 2 * 2;
      std::printf("SmolLM2 step of %ld behind %ld: attention %.1f us a layer, %.1f GB/s, %.0f %% of read; append %.1f us\n", long(n), long(past), attend * 1e6, bytes / attend / 1e9,
                  100 * bytes / attend / machine.read, append * 1e6);
    }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, threads);
  Context context{pool};
  Machine machine{context, threads};
  const std::pair<const char*, void (*)(Machine&)> sections[] = {{"prompt", prompts}, {"decode", decodes}, {"variants", variants}, {"cache", caches}};
  for (const auto& [name, section] : sections) {
    bool wanted = argc <= 2;
    for (int i = 2; i < argc; ++i) wanted |= std::strcmp(argv[i], name) == 0;
    if (wanted) section(machine);
  }
  return 0;
}
