// Choosing large elements of one row of logits without sorting it: the k largest through a small buffer (k ≤ 1024), and
// thresholds by rank or by probability mass for any number of elements. Included after simd/target.h.
//
// Rows hold neither NaN nor +infinity here (rowRange tells). Equal elements: the lowest index first.
#pragma once

namespace tl::TL_TARGET {

constexpr int64_t kExpBlock = 512;  // elements whose exponentials are summed in f32; blocks are summed in f64

struct Candidate {
  float value;
  int32_t index;
};

struct FallingOrder {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
  }
};

// The largest element; NaN where any element is NaN. −infinity for an empty row.
inline float rowMaximum(const float* x, int64_t n) {
  const F32 lowest = broadcast(-std::numeric_limits<float>::infinity());
  F32 largest[4] = {lowest, lowest, lowest, lowest}, spoiled = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const F32 v = load(x + i + j * kLanes);
      largest[j] = max(v, largest[j]);
      spoiled = select(isNan(v), v, spoiled);
    }
  for (; i < n; i += kLanes) {
    const int part = int(std::min<int64_t>(kLanes, n - i));
    const F32 v = loadPart(x + i, part);
    largest[0] = max(select(firstLanes(part), v, lowest), largest[0]);
    spoiled = select(isNan(v), v, spoiled);
  }
  if (any(isNan(spoiled))) return std::numeric_limits<float>::quiet_NaN();
  return maxLanes(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
}

// Σ exp(x − shift), in blocks of one length for every row.
inline double sumOfExp(const float* x, int64_t n, float shift) {
  const F32 offset = broadcast(shift);
  double sum = 0;
  for (int64_t i = 0; i < n; i += kExpBlock)
    sum += double(sumRow(x + i, std::min(kExpBlock, n - i), [=](F32 v) { return exp(sub(v, offset)); }));
  return sum;
}

// log Σ exp(x), from its largest element where that is known; −infinity for a row of only −infinity, NaN where an element is NaN or +infinity.
inline double logSumExp(const float* x, int64_t n, float largest) {
  if (largest == -std::numeric_limits<float>::infinity()) return double(largest);
  return double(largest) + std::log(sumOfExp(x, n, largest));
}
inline double logSumExp(const float* x, int64_t n) { return logSumExp(x, n, rowMaximum(x, n)); }

inline int64_t firstEqual(const float* x, int64_t n, float value) {
  const F32 wanted = broadcast(value);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const uint32_t below = bitsOfLanes(lessThan(load(x + i), wanted));  // nothing is larger
    if (below != (uint32_t(1) << kLanes) - 1) break;
  }
  while (x[i] != value) ++i;
  return i;
}

// The buffer selectLargest needs.
constexpr int64_t candidateCapacity(int64_t k) { return std::max<int64_t>(4 * k, 256) + kLanes; }

// The k largest of x [n], 1 ≤ k ≤ min(n, 1024), in falling order at the front of `buffer` [candidateCapacity(k)].
// One pass: what exceeds the k-th largest so far enters the buffer, which is cut back to k when it is full.
inline void selectLargest(const float* x, int64_t n, int64_t k, Candidate* buffer) {
  const int64_t capacity = candidateCapacity(k);
  int64_t count = 0, i = 0;
  const auto cut = [&] {
    std::nth_element(buffer, buffer + (k - 1), buffer + count, FallingOrder{});
    count = k;
  };
  for (; i < n && count + kLanes <= capacity; ++i) buffer[count++] = {x[i], int32_t(i)};
  if (i < n) {
    cut();
    F32 threshold = broadcast(buffer[k - 1].value);
    for (; i < n; i += kLanes) {
      uint32_t bits = bitsOfLanes(greaterThan(loadUpTo(x + i, n - i), threshold)) & lanesUpTo(n - i);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t at = i + __builtin_ctz(bits);
        buffer[count++] = {x[at], int32_t(at)};
      }
      if (count + kLanes <= capacity) continue;
      cut();
      threshold = broadcast(buffer[k - 1].value);
    }
  }
  if (count > k) cut();
  std::sort(buffer, buffer + k, FallingOrder{});
}

// Which elements stay: those above `value`, and the first `equal` of those at it.
struct Cut {
  float value = -std::numeric_limits<float>::infinity();
  int64_t equal = std::numeric_limits<int64_t>::max();
};

// Floats in order as unsigned integers; −0 and +0 are one.
inline uint32_t orderedKey(float value) {
  const float zeroed = value + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &zeroed, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline float valueOfKey(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// As a bound of a range: keys of NaN, which no element has, become the infinities beside them.
inline float boundOfKey(uint32_t key) {
  const float value = valueOfKey(key);
  return value == value ? value : key & 0x80000000u ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
}

constexpr int64_t kHistogram = int64_t(1) << 11;

struct Range {
  float lowest, highest;
};

// visit(value, weight) for the elements of x [n] that lie in `range` and that `within` keeps, in order; the weight is
// exp(x − shift) where kByMass, else 1.
template <bool kByMass, typename Visit> void visitKept(const float* x, int64_t n, Cut within, Range range, float shift, Visit&& visit) {
  const F32 floor = broadcast(range.lowest), ceiling = broadcast(range.highest), offset = broadcast(shift);
  float weight[kLanes];
  int64_t equalSeen = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 v = loadUpTo(x + i, n - i);
    uint32_t bits = ~(bitsOfLanes(lessThan(v, floor)) | bitsOfLanes(greaterThan(v, ceiling))) & lanesUpTo(n - i);
    if (bits == 0) continue;
    if (kByMass) store(weight, exp(sub(v, offset)));
    for (; bits != 0; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      const float value = x[i + lane];
      if (value < within.value || (value == within.value && ++equalSeen > within.equal)) continue;
      visit(value, kByMass ? double(weight[lane]) : 1.0);
    }
  }
}

// The cut that keeps the fewest of the largest elements whose weights reach `target` together, of those at least `lowest`
// that `within` keeps. Reads the row once a digit of the keys (11, 11, 10 bits), from the top, and once more to divide
// equal elements; each time only what the digits before left open is visited.
template <bool kByMass> Cut cutAtWeight(const float* x, int64_t n, Cut within, float lowest, float shift, double target, double* histogram) {
  Range range = {lowest, std::numeric_limits<float>::max()};
  uint32_t prefix = 0;
  double above = 0;  // weight of what is larger than all elements with the prefix
  for (int shiftBits = 21, bits = 11; bits > 0;) {
    std::fill(histogram, histogram + kHistogram, 0.0);
    visitKept<kByMass>(x, n, within, range, shift, [&](float value, double weight) {
      const uint32_t key = orderedKey(value);  // a range that ends at −0 holds +0 too, whose key is beyond it
      if (shiftBits + bits == 32 || key >> (shiftBits + bits) == prefix) histogram[(key >> shiftBits) & ((1u << bits) - 1)] += weight;
    });
    int digit = -1;  // the last one that has weight where rounding leaves the target out of reach
    for (int d = (1 << bits) - 1; d >= 0; --d) {
      if (histogram[d] == 0) continue;
      if (digit >= 0) above += histogram[digit];
      digit = d;
      if (above + histogram[d] >= target) break;
    }
    if (digit < 0) return within;
    prefix = prefix << bits | uint32_t(digit);
    const uint32_t first = prefix << shiftBits, last = first | ((uint32_t(1) << shiftBits) - 1);
    range = {std::max(range.lowest, boundOfKey(first)), std::min(range.highest, boundOfKey(last))};
    bits = std::min(11, shiftBits);
    shiftBits -= bits;
  }
  const float value = valueOfKey(prefix);
  double unit = 0;
  visitKept<kByMass>(x, n, within, {value, value}, shift, [&](float, double weight) { unit = weight; });
  return {value, std::max<int64_t>(1, int64_t(std::min(std::ceil((target - above) / unit), 0x1p31)))};
}

// kBins bins of one width over low … high, from 0. What lies below falls into one of the bins −kLanes … −1, each lane into
// its own: additions to one bin wait for each other.
struct Bins {
  F32 lowest, scale, below;
  Bins(float low, float high) : lowest(broadcast(low)), scale(broadcast(float(kBins - 2) / (high - low))) {
    float lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = float(i - kLanes);
    below = load(lane);
  }
  F32 of(F32 v) const { return max(roundEven(mul(sub(v, lowest), scale)), below); }  // the second operand rules for NaN
  static constexpr int64_t kBins = kHistogram - kLanes;
};

// Σ exp(x − maximum) over the elements of each bin; bins below 0 first.
inline void weighBins(const float* x, int64_t n, float maximum, const Bins& bins, double* histogram) {
  const F32 offset = broadcast(maximum);
  std::fill(histogram, histogram + kHistogram, 0.0);
  const auto weigh = [&](int64_t i, int64_t lanes) {
    int32_t bin[kLanes];
    float weight[kLanes];
    const F32 v = loadUpTo(x + i, lanes);
    store(bin, toInt(bins.of(v)));
    store(weight, exp(sub(v, offset)));
    for (int64_t lane = 0; lane < lanes; ++lane) histogram[bin[lane] + kLanes] += double(weight[lane]);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) weigh(i, kLanes);
  if (i < n) weigh(i, n - i);
}

// The elements of one bin in falling order; −1 where the buffer [candidateCapacity(kMostCandidates)] cannot hold them.
inline int64_t collectBin(const float* x, int64_t n, const Bins& bins, int64_t bin, Candidate* buffer) {
  const F32 wanted = broadcast(float(bin));
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 found = bins.of(loadUpTo(x + i, n - i));
    uint32_t bits = ~(bitsOfLanes(lessThan(found, wanted)) | bitsOfLanes(greaterThan(found, wanted))) & lanesUpTo(n - i);
    if (count + kLanes > candidateCapacity(kMostCandidates)) return -1;
    for (; bits != 0; bits &= bits - 1) {
      const int64_t at = i + __builtin_ctz(bits);
      buffer[count++] = {x[at], int32_t(at)};
    }
  }
  std::sort(buffer, buffer + count, FallingOrder{});
  return count;
}

// The cut that keeps the fewest of the largest elements whose weights exp(x − maximum) reach `share` of the weight of all,
// share < 1. Reads the row twice: weights into bins, then the elements of the bin in which the target lies. False where
// they are too many (rows of many equals) or the bins cannot tell elements apart.
inline bool cutAtShare(const float* x, int64_t n, float maximum, double share, double* histogram, Candidate* candidates, Cut& cut) {
  // All that lie below this together weigh less than 1 − share of the largest alone: the target is reached without them.
  const float bound = maximum + float(std::log((1 - share) / double(n))) - 0.01f;
  const Bins bins(std::min(bound, std::nextafter(maximum, -std::numeric_limits<float>::infinity())), maximum);
  weighBins(x, n, maximum, bins, histogram);
  double total = 0, above = 0;
  for (int64_t bin = 0; bin < kHistogram; ++bin) total += histogram[bin];
  const double target = share * total;
  int64_t bin = kHistogram - 1;
  while (bin >= kLanes && (histogram[bin] == 0 || above + histogram[bin] < target)) above += histogram[bin--];
  const int64_t count = bin < kLanes ? -1 : collectBin(x, n, bins, bin - kLanes, candidates);
  if (count < 0) return false;
  int64_t last = 0, first = 0;  // of those kept: the last, and the first that equals it
  for (;; ++last) {
    if (candidates[last].value != candidates[first].value) first = last;
    above += std::exp(double(candidates[last].value) - double(maximum));
    if (above >= target || last + 1 == count) break;
  }
  cut = {candidates[last].value, last - first + 1};
  return true;
}

}  // namespace tl::TL_TARGET
