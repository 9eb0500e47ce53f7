// Speed of the matmul kernels: GMAC/s for prompts, GB/s of weights for decoding beside the memory's own read rate.
// Usage: matmul_bench [isa] [threads] [part of a case's name]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../cpp/kernels/quantized_rows.h"
#include "../../cpp/kernels/table.h"
#include "limits.h"

namespace {

using tl::Storage;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Case { const char* name; Storage storage; int64_t rows, columns; };
constexpr Case kCases[] = {
    {"qkv     q4_1", Storage::q4_1, 960, 576},    {"out     q4_1", Storage::q4_1, 576, 576},
    {"gate|up q4_1", Storage::q4_1, 3072, 576},   {"down    q4_1", Storage::q4_1, 576, 1536},
    {"gate|up q4_0", Storage::q4_0, 3072, 576},   {"gate|up q4_k", Storage::q4_k, 3072, 768},
    {"gate|up q6_k", Storage::q6_k, 3072, 768},   {"gate|up q8_0", Storage::q8_0, 3072, 576},
    {"head    q8_0", Storage::q8_0, 49152, 576},  {"gate|up f32 ", Storage::f32, 3072, 576},
    {"gate|up f16 ", Storage::f16, 3072, 576},    {"gate|up bf16", Storage::bf16, 3072, 576},
    {"vit qkv f32 ", Storage::f32, 1152, 384},    {"vit fc1 f32 ", Storage::f32, 1536, 384},
    {"vit fc2 f32 ", Storage::f32, 384, 1536},
};

// Values do not matter for speed, but they must be finite: all scales small positive f16.
std::vector<uint8_t> storedBytes(Storage storage, int64_t count) {
  std::vector<uint8_t> bytes(size_t(count / tl::storageBlockElements(storage) * tl::storageBlockBytes(storage)));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = uint8_t((i * 2654435761u >> 13) & 0x1f);
  const size_t width = storage == Storage::f32 ? 4 : storage == Storage::bf16 ? 2 : 0;  // no subnormal floats: they are slow
  for (size_t i = width; width && i <= bytes.size(); i += width) bytes[i - 1] = 0x3c;
  return bytes;
}

tl::PackedWeight packed(const tl::KernelTable& table, const Case& shape) {
  tl::PackedWeight weight;
  if (table.packing.plan(shape.storage, shape.rows, shape.columns, weight)) std::abort();
  weight.buffer = tl::Buffer(size_t(weight.groupBytes * tl::ceilDiv(shape.rows, weight.groupRows)), tl::Owner::weight);
  const std::vector<uint8_t> bytes = storedBytes(shape.storage, shape.rows * shape.columns);
  table.packing.pack(shape.storage, bytes.data(), 0, shape.rows, weight);
  return weight;
}

tl::View rowsView(void* data, tl::DType type, int64_t rows, int64_t columns) {
  const int64_t dims[] = {rows, columns};
  return tl::contiguous(data, type, 2, dims);
}

struct Operands {
  std::vector<float> x, out;
  std::vector<uint8_t> quantized;
  tl::MatmulArgs args{};

  Operands(tl::PackedWeight& weight, int64_t n) : x(size_t(n * weight.columns), 0.5f), out(size_t(n * weight.rows)) {
    const bool integer = weight.blockSize != 0;
    quantized.resize(size_t(n * tl::quantizedRowBytes(weight.columns)) + 64);
    void* q8 = reinterpret_cast<void*>((uintptr_t(quantized.data()) + 63) & ~uintptr_t(63));
    for (int64_t t = 0; t < n; ++t) {
      const tl::QuantizedRow row = tl::quantizedRow(q8, weight.columns, t);
      for (int64_t i = 0; i < weight.columns; ++i) row.q[i] = int8_t(i % 17 - 8);
      for (int64_t b = 0; b < tl::quantBlocks(weight.columns); ++b) row.scale[b] = 0.01f, row.scaledSum[b] = 0.02f, row.sum[2 * b] = row.sum[2 * b + 1] = 1;
    }
    args.x = integer ? rowsView(q8, tl::DType::q8, n, weight.columns) : rowsView(x.data(), tl::DType::f32, n, weight.columns);
    args.weight = rowsView(&weight, tl::DType::packed, weight.rows, weight.columns);
    args.out = rowsView(out.data(), tl::DType::f32, n, weight.rows);
  }
};

// Seconds a call, best of several rounds.
template <typename Function> double best(double seconds, Function&& function) {
  double fastest = 1e9;
  for (const double end = now() + seconds; now() < end;) {
    const double start = now();
    function();
    fastest = std::min(fastest, now() - start);
  }
  return fastest;
}

void prompt(const tl::KernelTable& table, tl::Context& context, const Case& shape, int64_t n) {
  tl::PackedWeight weight = packed(table, shape);
  Operands operands(weight, n);
  const auto kernel = table.kernels[size_t(tl::Op::matmul)];
  const double seconds = best(0.25, [&] { if (kernel(&operands.args, context)) std::abort(); });
  std::printf("  %s [%5lld x %4lld] n=%4lld  %7.1f us  %7.1f GMAC/s\n", shape.name, (long long)shape.rows, (long long)shape.columns, (long long)n,
              seconds * 1e6, double(n) * double(shape.rows * shape.columns) / seconds * 1e-9);
}

// Cycles through copies of the weight, more than the last-level cache holds.
void decode(const tl::KernelTable& table, tl::Context& context, const Case& shape, int64_t n, double roof) {
  std::vector<tl::PackedWeight> weights;
  int64_t bytes = 0;
  while (bytes < (int64_t(96) << 20)) {
    weights.push_back(packed(table, shape));
    bytes += int64_t(weights.back().buffer.bytes());
  }
  Operands operands(weights[0], n);
  const auto kernel = table.kernels[size_t(tl::Op::matmul)];
  const double seconds = best(0.3, [&] {
    for (tl::PackedWeight& weight : weights) {
      operands.args.weight.data = &weight;
      if (kernel(&operands.args, context)) std::abort();
    }
  });
  const double rate = double(bytes) / seconds * 1e-9;
  std::printf("  %s [%5lld x %4lld] n=%2lld  %7.1f us  %6.2f GB/s", shape.name, (long long)shape.rows, (long long)shape.columns, (long long)n,
              seconds / double(weights.size()) * 1e6, rate);
  std::printf(n == 1 ? "  %3.0f %% of memory\n" : "\n", rate / roof * 100);
}

}  // namespace

int main(int argc, char** argv) {
  tl::Isa isa = tl::bestIsa();
  for (int i = 0; argc > 1 && i < int(tl::Isa::count); ++i)
    if (std::strcmp(argv[1], tl::isaName(tl::Isa(i))) == 0) isa = tl::Isa(i);
  const int threads = argc > 2 ? std::atoi(argv[2]) : 1;
  const char* only = argc > 3 ? argv[3] : "";
  const tl::KernelTable* table = tl::kernelTable(isa);
  if (!table) return 1;
  tl::ThreadPool& pool = tl::ThreadPool::shared();
  tl::ThreadPool::Turn turn(pool, threads);
  tl::Context context{pool};
  std::printf("%s, %d thread(s)\n prompts\n", tl::isaName(isa), pool.threads());
  for (const Case& shape : kCases)
    if (shape.rows < 10000 && std::strstr(shape.name, only)) prompt(*table, context, shape, getenv("NN")?atoi(getenv("NN")):512);
  for (int64_t n : {8, 16, 33, 64}) if (std::strstr(kCases[2].name, only)) prompt(*table, context, kCases[2], n);
  const double roof = limits::readBandwidth(pool.threads()) * 1e-9;
  std::printf(" decode (memory reads at %.1f GB/s)\n", roof);
  for (const Case& shape : kCases)
    if (std::strstr(shape.name, only)) decode(*table, context, shape, 1, roof);
  for (int index : {2, 3, 8, 9})
    for (int64_t n : {2, 3, 4, 6, 8, 11, 16, 24})
      if (std::strstr(kCases[index].name, only)) decode(*table, context, kCases[index], n, roof);
}
