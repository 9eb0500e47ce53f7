// Choosing tokens that lie far apart, one after another.
//   farthestRows  the token farthest from its nearest chosen one, again and again (DivPrune, arXiv 2503.02175; ToDRE, 2505.18757)
//   uniqueRows    tokens that resemble no earlier unique one (after arXiv 2407.14439)
//
// A token's distance to the nearest chosen one only falls, so an old value is a bound: only where a token's bound is the largest of all
// does it have to be brought up to date. Some tokens of large bounds are brought up to date together, each against all chosen since
// its last time: far fewer distances than tokens · chosen, and no pass over all tokens for each choice. A distance is the same sum
// whenever it is made, so the choice is that of the plain method, to the last tie.
#include "../simd/target.h"
#include "float_tile_inl.h"
#include "reduce_inl.h"

namespace tl::TL_TARGET {
namespace {

constexpr int kTokens = 3, kCentres = kVectors >= 32 ? 6 : 4;  // tokens that meet so many centres at once: their sums fill the registers
constexpr int64_t kMostBatch = 192;       // tokens brought up to date together
constexpr int64_t kFewBatch = 64;
constexpr int64_t kBlockGroups = 32;      // groups of tokens that stay in L2 under all centres they meet
constexpr int64_t kMostPending = 64;      // centres a token meets at a time: its bound may fall enough before the last
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// sums[i][j] of the terms of some tokens and centres: lanes are columns, in ascending order.
template <typename Term> TL_NOINLINE void addTerms(const float* const (&token)[kTokens], const float* const (&centre)[kCentres], int64_t columns, float (&sums)[kTokens][kCentres]) {
  F32 sum[kTokens][kCentres];
  TL_UNROLL for (int i = 0; i < kTokens; ++i) TL_UNROLL for (int j = 0; j < kCentres; ++j) sum[i][j] = zero();
  const auto step = [&](auto&& get) __attribute__((always_inline)) {
    F32 own[kTokens];
    TL_UNROLL for (int i = 0; i < kTokens; ++i) own[i] = get(token[i]);
    TL_UNROLL for (int j = 0; j < kCentres; ++j) {
      const F32 c = get(centre[j]);
      TL_UNROLL for (int i = 0; i < kTokens; ++i) sum[i][j] = Term::add(sum[i][j], own[i], c);
    }
  };
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) step([&](const float* row) __attribute__((always_inline)) { return load(row + column); });
  if (column < columns) step([&](const float* row) __attribute__((always_inline)) { return loadPart(row + column, int(columns - column)); });
  for (int i = 0; i < kTokens; ++i) for (int j = 0; j < kCentres; ++j) sums[i][j] = sumLanes(sum[i][j]);
}

// One sequence. Distances are squares where the nearest one counts and the metric is Euclidean.
struct Spread {
  const float* rows;
  int64_t stride, columns, tokens;
  bool euclidean, sum;
  float* distance;    // to the nearest centre met so far (or the sum): −∞ once chosen
  int32_t* met;       // how many centres that are
  int32_t* centres;   // in order of choice
  int32_t* batch;
  int64_t centreCount = 0;
  Context* helpers = nullptr;  // null: this sequence stays on one thread

  const float* row(int64_t i) const { return rows + i * stride; }

  // Some tokens, the last of them repeated where they are fewer, meet `count` centres from `first` on, the last of them repeated too.
  void meet(const int32_t (&token)[kTokens], const float* const (&centre)[kCentres], int64_t first, int64_t count) const {
    const float* own[kTokens];
    float sums[kTokens][kCentres];
    for (int i = 0; i < kTokens; ++i) own[i] = row(token[i]);
    euclidean ? addTerms<SquaredDifference>(own, centre, columns, sums) : addTerms<Dot>(own, centre, columns, sums);
    for (int i = 0; i < kTokens && (i == 0 || token[i] != token[i - 1]); ++i)
      for (int64_t j = 0; j < count; ++j) add(token[i], centres[first + j], sums[i][j]);
  }
  void add(int32_t token, int32_t centre, float terms) const {
    if (token == centre) return;
    const float far = !euclidean ? 1 - terms : sum ? std::sqrt(terms) : terms;
    if (sum) distance[token] += far;
    else if (far < distance[token]) distance[token] = far;
    else if (std::isnan(far) && std::isnan(ownTerms(token))) distance[token] = far;
  }

  // Sum of a token's terms with itself: no number where one of its elements is none.
  float ownTerms(int64_t token) const {
    const float *own[kTokens], *same[kCentres];
    std::fill(own, own + kTokens, row(token));
    std::fill(same, same + kCentres, row(token));
    float sums[kTokens][kCentres];
    euclidean ? addTerms<SquaredDifference>(own, same, columns, sums) : addTerms<Dot>(own, same, columns, sums);
    return sums[0][0];
  }

  // Brings the batch's tokens closer to date: each meets the next `pending` centres that it has not met. Groups of tokens, those that
  // met the fewest first; all that met the same ones meet a few centres in turn, which stay in L1.
  void advance(int64_t count, int64_t pending = kMostPending) const {
    const auto group = [&](int64_t i, int32_t (&token)[kTokens]) {
      for (int64_t j = 0; j < kTokens; ++j) token[j] = batch[std::min(kTokens * i + j, count - 1)];
    };
    const auto body = [&](int64_t begin, int64_t end, int) {
      int32_t token[kTokens];
      for (int64_t i = begin, alike; i < end; i = alike) {
        const int64_t from = met[batch[kTokens * i]], to = sum ? centreCount : std::min(centreCount, from + pending);
        for (alike = i + 1; alike < std::min(end, i + kBlockGroups) && met[batch[kTokens * alike]] == from;) ++alike;
        for (int64_t first = from; first < to; first += kCentres) {
          const float* centre[kCentres];
          for (int j = 0; j < kCentres; ++j) centre[j] = row(centres[std::min(first + j, to - 1)]);
          for (int64_t g = i; g < alike; ++g) {
            group(g, token);
            meet(token, centre, first, std::min<int64_t>(kCentres, to - first));
          }
        }
        for (int64_t g = i; g < alike; ++g) {
          group(g, token);
          for (const int32_t one : token) met[one] = std::max(met[one], int32_t(to));
        }
      }
    };
    const int64_t groups = ceilDiv(count, kTokens);
    if (helpers) helpers->pool.parallelFor(groups, std::max<int64_t>(1, std::min<int64_t>(4, groups / 4)), body);
    else body(0, groups, 0);
  }

  // The first token of the largest distance; −1 where none is left. Tokens that are no numbers come last.
  int64_t largest() const {
    F32 most = broadcast(-kInfinity);
    for (int64_t i = 0; i < tokens; i += kLanes) most = max(select(firstLanes(int(std::min<int64_t>(kLanes, tokens - i))), loadUpTo(distance + i, tokens - i), most), most);
    const float wanted = maxLanes(most);
    for (int64_t i = 0; i < tokens && wanted > -kInfinity; ++i)
      if (distance[i] == wanted) return i;
    return -1;
  }

  // The token to choose next, all that matters up to date. `reach`: how far below the largest bound others are taken along.
  int64_t next(float& reach) const {
    for (;;) {
      if (sum) {
        int64_t stale = 0;
        for (int64_t i = 0; i < tokens; ++i)
          if (met[i] < centreCount && distance[i] > -kInfinity) batch[stale++] = int32_t(i);
        if (stale > 0) advance(stale);
      }
      const int64_t best = largest();
      if (best < 0 || met[best] >= centreCount) return best;
      const float bound = distance[best], lowest = bound == kInfinity ? bound : bound - reach * std::fabs(bound);
      int64_t count = 0;
      for (int64_t i = best; i < tokens && count < kMostBatch; i += kLanes) {
        uint32_t bits = ~bitsOfLanes(lessThan(loadUpTo(distance + i, tokens - i), broadcast(lowest))) & lanesUpTo(tokens - i);
        for (; bits != 0 && count < kMostBatch; bits &= bits - 1) {
          const int64_t at = i + __builtin_ctz(bits);
          if (met[at] < centreCount) batch[count++] = int32_t(at);
        }
      }
      if (bound != kInfinity) reach = count >= kMostBatch ? reach * 0.75f : count < kFewBatch ? std::min(reach * 1.5f + 1e-6f, 1.0f) : reach;
      std::sort(batch, batch + count, [&](int32_t a, int32_t b) { return met[a] != met[b] ? met[a] < met[b] : a < b; });  // neighbours meet the same centres
      advance(count);
    }
  }

  void forget() {
    std::fill(distance, distance + tokens, sum ? 0.0f : kInfinity);
    std::fill(met, met + tokens, 0);
  }

  // The token whose nearest other one is farthest: all tokens are centres.
  int64_t mostAlone(float& reach) {
    const bool wanted = sum;
    sum = false;
    forget();
    for (int64_t i = 0; i < tokens; ++i) centres[i] = batch[i] = int32_t(i);
    centreCount = tokens;
    advance(tokens, std::max(tokens / 16, kMostPending));  // hardly a token is settled by fewer
    const int64_t found = next(reach);
    sum = wanted;
    return std::max<int64_t>(found, 0);
  }

  // Chooses `count` tokens, the first one given: kept [tokens], order [tokens].
  void choose(int64_t first, int64_t count, float& reach, uint8_t* kept, int32_t* order) {
    forget();
    centreCount = 0;
    for (int64_t chosen = first; centreCount < count;) {
      kept[chosen] = 1;
      order[centreCount] = centres[centreCount] = int32_t(chosen);
      ++centreCount;
      distance[chosen] = -kInfinity;
      if (centreCount == count) break;
      chosen = next(reach);
      for (int64_t i = 0; chosen < 0; ++i)
        if (!kept[i]) chosen = i;
    }
  }
};

}  // namespace

Status farthestRows(const FarthestRowsArgs& args, Context& context) {
  constexpr const char* op = "farthestRows";
  FloatRows x;
  Sequences sequences;
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, x, sequences));
  float *unit, *distances, *scores = nullptr;
  int32_t *counts, *order, *work;
  uint8_t* kept;
  TL_TRY(flat(op, "unit", args.unit, DType::f32, x.rows * x.width, unit));
  TL_TRY(flat(op, "distances", args.distances, DType::f32, x.rows, distances));
  TL_TRY(flat(op, "work", args.work, DType::i32, 3 * x.rows, work));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, sequences.count, counts));
  TL_TRY(flat(op, "order", args.order, DType::i32, x.rows, order));
  TL_TRY(flat(op, "kept", args.kept, DType::u8, x.rows, kept));
  if (args.start == 1) TL_TRY(flat(op, "scores", args.scores, DType::f32, x.rows, scores));
  const bool euclidean = args.distance != 0;
  std::fill(kept, kept + x.rows, uint8_t(0));
  std::fill(order, order + x.rows, -1);
  if (!euclidean)
    forRows(context, sequences.rows(), x.width, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) writeUnit(x.row(i), unit + i * x.width, x.width);
    });
  const bool apart = sequences.count >= context.pool.threads();
  const auto one = [&](int64_t s) {
    const int64_t begin = sequences.begin(s), tokens = sequences.length(s), count = std::clamp<int64_t>(counts[s], 0, tokens);
    if (count == 0) return;
    Spread of{euclidean ? x.row(begin) : unit + begin * x.width, euclidean ? x.stride : x.width, x.width, tokens, euclidean, args.sum != 0, distances + begin, work + begin, work + x.rows + begin, work + 2 * x.rows + begin};
    of.helpers = apart || tokens * x.width < kParallelElements ? nullptr : &context;
    float reach = 0.02f;
    int64_t first = std::clamp<int64_t>(int64_t(args.first), 0, tokens - 1);
    if (args.start == 0) first = of.mostAlone(reach);
    if (args.start == 1)
      for (int64_t i = 0; i < tokens; ++i)
        if (i == 0 || scores[begin + i] > scores[begin + first] || (std::isnan(scores[begin + first]) && !std::isnan(scores[begin + i]))) first = i;
    of.choose(first, count, reach, kept + begin, order + begin);
  };
  if (!apart) {
    for (int64_t s = 0; s < sequences.count; ++s) one(s);
    return {};
  }
  context.pool.parallelFor(sequences.count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) one(s);
  });
  return {};
}

Status uniqueRows(const UniqueRowsArgs& args, Context& context) {
  constexpr const char* op = "uniqueRows";
  FloatRows x;
  Sequences sequences;
  TL_TRY(tokenRows(op, "x", args.x, args.bounds, x, sequences));
  float* unit;
  int32_t *counts, *work;
  uint8_t* unique;
  TL_TRY(flat(op, "unit", args.unit, DType::f32, x.rows * x.width, unit));
  TL_TRY(flat(op, "work", args.work, DType::i32, x.rows, work));
  TL_TRY(flat(op, "counts", args.counts, DType::i32, sequences.count, counts));
  TL_TRY(flat(op, "unique", args.unique, DType::u8, x.rows, unique));
  const float threshold = float(args.threshold);
  std::fill(unique, unique + x.rows, uint8_t(0));
  context.pool.parallelFor(sequences.count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      int32_t* list = work + sequences.begin(s);
      int64_t count = 0;
      for (int64_t i = sequences.begin(s); i < sequences.begin(s + 1); ++i) {
        float* own = unit + i * x.width;
        writeUnit(x.row(i), own, x.width);
        bool resembles = false;
        for (int64_t first = 0; first < count && !resembles; first += kCentres) {
          const float* const token[kTokens] = {own, own, own};
          const float* other[kCentres];
          for (int j = 0; j < kCentres; ++j) other[j] = unit + list[std::min(first + j, count - 1)] * x.width;
          float sums[kTokens][kCentres];
          addTerms<Dot>(token, other, x.width, sums);
          for (const float cosine : sums[0]) resembles |= cosine > threshold;
        }
        if (resembles) continue;
        unique[i] = 1;
        list[count++] = int32_t(i);
      }
      counts[s] = int32_t(count);
    }
  });
  return {};
}

}  // namespace tl::TL_TARGET
