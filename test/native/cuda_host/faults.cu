// A block-wide scan of rows by everything that cuda/core/device.cuh offers, and the same with one fault each: what the
// emulation is there to catch. cuda_faults NAME runs one; exit 0 = the right numbers and no complaint.
#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

#include "../../../cuda/core/device.cuh"

namespace tl::cuda {
namespace {

enum class Fault {
  none, noBarrierAfterWait, noBarrierBeforeRefill, noBarrierInReduction, waitOneShort, rowPastEnd, sharedTooSmall, wrongShuffle,
  divergentBarrier, divergentShuffle, misalignedCopy, openCopies, noWarpBarrier, wrongFragment,
};

constexpr int kThreads = 128, kTile = kThreads * 4, kTiles = 5;

// out[row] = Σ of x's row of kTiles · kTile floats: tiles through a double buffer, warps by shuffles, the block by shared memory.
template <Fault fault> __global__ void sumRows(const float* x, float* out) {
  Shared shared;
  float* tile = shared.take<float>(2 * kTile);
  float* sums = shared.take<float>(fault == Fault::sharedTooSmall ? 5 : 4);
  const int thread = int(threadIdx.x), lane = laneIndex(), warp = warpIndex();
  const float* row = x + int64_t(blockIdx.x) * kTiles * kTile;
  const auto fetch = [&](int t) {
    const int shift = fault == Fault::misalignedCopy && t == 2 ? 1 : 0;
    const int past = fault == Fault::rowPastEnd && t == kTiles - 1 ? 4 : 0;
    copyAsync(tile + t % 2 * kTile + thread * 4, row + t * kTile + thread * 4 + shift + past, true);
    commitCopies();
  };
  fetch(0);
  float sum = 0;
  for (int t = 0; t < kTiles; ++t) {
    if (t + 1 < kTiles) {
      fetch(t + 1);
      if constexpr (fault == Fault::waitOneShort) waitCopies<2>();
      else waitCopies<1>();
    } else if constexpr (fault != Fault::openCopies) {
      waitCopies<0>();
    }
    if constexpr (fault != Fault::noBarrierAfterWait) __syncthreads();
    for (int i = 0; i < 4; ++i) sum += tile[t % 2 * kTile + i * kThreads + thread];  // others' elements
    if constexpr (fault == Fault::divergentBarrier) {
      if (warp != 2) __syncthreads();
    } else if constexpr (fault != Fault::noBarrierBeforeRefill) {
      __syncthreads();
    }
  }
  if constexpr (fault == Fault::divergentShuffle) {
    if (lane < 16) sum += shuffleXor(sum, 1);
  } else {
    for (int distance = 16; distance > 0; distance /= 2) sum += shuffleXor(sum, fault == Fault::wrongShuffle && distance == 4 ? 8 : distance);
  }
  if (lane == 0) sums[warp] = sum;
  if constexpr (fault == Fault::sharedTooSmall) sums[4] = 0;
  if constexpr (fault != Fault::noBarrierInReduction) __syncthreads();
  if (thread == 0) out[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
}

// out [16][8] = a [16][16] · b [8][16]ᵀ of f16 by the tensor cores; each warp's matrices pass through shared memory.
template <Fault fault> __global__ void product(const f16* a, const f16* b, float* out) {
  Shared shared;
  f16* as = shared.take<f16>(16 * 24);
  f16* bs = shared.take<f16>(16 * 24);
  const int lane = laneIndex();
  for (int i = lane; i < 256; i += kWarp) as[i / 16 * 24 + i % 16] = a[i];
  for (int i = lane; i < 256; i += kWarp) bs[i / 16 * 24 + i % 16] = i < 128 ? b[i] : f16{0};
  if constexpr (fault != Fault::noWarpBarrier) __syncwarp();
  uint32_t left[4], right[4];
  loadMatrix<false>(left, as + (lane % 16) * 24 + lane / 16 * 8);
  loadMatrix<fault == Fault::wrongFragment>(right, bs + (lane % 8 + lane / 16 * 8) * 24 + lane / 8 % 2 * 8);
  float d[4] = {};
  multiply<f16>(d, left, {right[0], right[1]});
  for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <Fault fault> bool runSums() {
  constexpr int kRows = 3;
  DeviceContext context;
  const size_t bytes = sizeof(float) * kRows * kTiles * kTile;
  auto* x = static_cast<float*>(std::aligned_alloc(16, bytes));
  for (int i = 0; i < kRows * kTiles * kTile; ++i) x[i] = float(i * 2654435761u % 17) - 8;  // small integers: sums are exact
  std::vector<float> out(kRows, -1);
  Status status = launch("sumRows", context, sumRows<fault>, dim3(kRows), dim3(kThreads), sharedBytes<float>(2 * kTile) + sharedBytes<float>(4), x, out.data());
  if (!status) status = synchronize(context);
  bool good = !status;
  for (int r = 0; r < kRows; ++r) {
    float want = 0;
    for (int i = 0; i < kTiles * kTile; ++i) want += x[r * kTiles * kTile + i];
    good = good && out[size_t(r)] == want;
  }
  std::free(x);
  return good;
}

template <Fault fault> bool runProduct() {
  DeviceContext context;
  std::vector<f16> a(256), b(128);
  for (size_t i = 0; i < 256; ++i) a[i] = toF16(float(i * 7 % 11) - 5);
  for (size_t i = 0; i < 128; ++i) b[i] = toF16(float(i * 5 % 13) - 6);
  std::vector<float> out(128, -1);
  Status status = launch("product", context, product<fault>, dim3(1), dim3(kWarp), 2 * sharedBytes<f16>(16 * 24), a.data(), b.data(), out.data());
  if (!status) status = synchronize(context);
  bool good = !status;
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j) {
      float want = 0;
      for (size_t k = 0; k < 16; ++k) want += toFloat(a[i * 16 + k]) * toFloat(b[j * 16 + k]);
      good = good && out[i * 8 + j] == want;
    }
  return good;
}

struct Case {
  const char* name;
  bool (*run)();
};
constexpr Case kCases[] = {
    {"none", runSums<Fault::none>},
    {"noneProduct", runProduct<Fault::none>},
    {"noBarrierAfterWait", runSums<Fault::noBarrierAfterWait>},
    {"noBarrierBeforeRefill", runSums<Fault::noBarrierBeforeRefill>},
    {"noBarrierInReduction", runSums<Fault::noBarrierInReduction>},
    {"waitOneShort", runSums<Fault::waitOneShort>},
    {"rowPastEnd", runSums<Fault::rowPastEnd>},
    {"sharedTooSmall", runSums<Fault::sharedTooSmall>},
    {"wrongShuffle", runSums<Fault::wrongShuffle>},
    {"divergentBarrier", runSums<Fault::divergentBarrier>},
    {"divergentShuffle", runSums<Fault::divergentShuffle>},
    {"misalignedCopy", runSums<Fault::misalignedCopy>},
    {"openCopies", runSums<Fault::openCopies>},
    {"noWarpBarrier", runProduct<Fault::noWarpBarrier>},
    {"wrongFragment", runProduct<Fault::wrongFragment>},
};

}  // namespace
}  // namespace tl::cuda

int main(int count, char** arguments) {
  if (count < 2) {
    for (const auto& one : tl::cuda::kCases) std::printf("%s\n", one.name);
    return 0;
  }
  for (const auto& one : tl::cuda::kCases)
    if (std::string_view(arguments[1]) == one.name) return one.run() ? 0 : 1;
  std::fprintf(stderr, "there is no case %s\n", arguments[1]);
  return 2;
}
