// `attention` and its relatives with random shapes, strides, element types and masks against the formula in float64, and bit
// for bit against themselves with other numbers of threads and other groups of queries.
#include "attention_support.h"

namespace tl::test {
namespace {

// f32, f16 or bf16 [batch, heads, tokens, dim], laid out as [batch, tokens, heads, dim] with gaps (the strides of a fused
// projection) or plainly; read back in double.
struct Typed {
  std::vector<int64_t> dims;
  DType dtype;
  std::vector<std::byte> data;
  int64_t strides[4];

  Typed(std::mt19937& random, std::vector<int64_t> shape, DType type, float spread) : dims(std::move(shape)), dtype(type) {
    const int64_t gap = int64_t(random() % 5);
    const bool interleaved = random() % 2;
    strides[3] = 1;
    strides[interleaved ? 1 : 2] = dims[3] + gap;
    strides[interleaved ? 2 : 1] = (dims[3] + gap) * dims[interleaved ? 1 : 2] + int64_t(random() % 3);
    strides[0] = strides[interleaved ? 2 : 1] * dims[interleaved ? 2 : 1] + 7;
    data.resize(size_t(std::max<int64_t>(1, dims[0] * strides[0])) * elementBytes(type) + 64);
    std::normal_distribution<float> normal(0, spread);
    for (int64_t i = 0; i < int64_t(data.size()) / int64_t(elementBytes(type)); ++i) set(i, normal(random));
  }
  void set(int64_t i, float x) {
    if (dtype == DType::f16) reinterpret_cast<f16*>(data.data())[i] = toF16(x);
    else if (dtype == DType::bf16) reinterpret_cast<bf16*>(data.data())[i] = toBf16(x);
    else reinterpret_cast<float*>(data.data())[i] = x;
  }
  int64_t index(int64_t b, int64_t h, int64_t t, int64_t d) const { return b * strides[0] + h * strides[1] + t * strides[2] + d; }
  double at(int64_t b, int64_t h, int64_t t, int64_t d) const {
    const int64_t i = index(b, h, t, d);
    if (dtype == DType::f16) return toFloat(reinterpret_cast<const f16*>(data.data())[i]);
    if (dtype == DType::bf16) return toFloat(reinterpret_cast<const bf16*>(data.data())[i]);
    return reinterpret_cast<const float*>(data.data())[i];
  }
  View view() {
    View v = contiguous(data.data(), dtype, 4, dims.data());
    std::copy(strides, strides + 4, v.strides);
    return v;
  }
};

// Attention without a mask.
AttentionArgs plainArgs(Typed& query, Typed& key, Typed& value, Tensor& out, double scale) {
  AttentionArgs args{};
  args.query = query.view();
  args.key = key.view();
  args.value = value.view();
  args.out = out.view();
  args.scale = scale;
  return args;
}

// A random problem of one of the mask shapes; `seen` and `logit` are the formula.
struct Random {
  std::mt19937 random;
  int64_t batch, heads, kvHeads, queries, keys, headDim, valueDim;
  AttentionArgs args{};
  std::unique_ptr<Typed> query, key, value;
  Tensor bias, slopes, sinks, content, position, out, logSumExp, sums, scores;
  std::vector<int32_t> relative, tree;
  std::vector<uint8_t> blocks;

  int64_t pick(int64_t low, int64_t high) { return low + int64_t(random() % uint64_t(high - low + 1)); }

  explicit Random(unsigned seed) : random(seed) {
    static const int64_t someDims[] = {1, 3, 8, 16, 20, 33, 64, 72, 128};
    batch = pick(1, 2);
    kvHeads = pick(1, 3);
    heads = kvHeads * pick(1, 4);
    queries = random() % 3 == 0 ? pick(1, 4) : pick(0, 90);
    keys = random() % 4 == 0 ? pick(0, 900) : pick(0, 200);
    headDim = someDims[pick(0, 8)];
    valueDim = random() % 4 ? headDim : someDims[pick(0, 8)];
    args.maskShape = random() % 2 ? double(pick(0, 4)) : 0;
    args.causal = double(args.maskShape != 2 && args.maskShape < 3 && random() % 2);
    if (args.maskShape == 2) keys = std::max(keys, queries);
    if (args.maskShape == 3) {
      queries = keys = std::max<int64_t>(keys, 1);
      args.gridWidth = double(pick(1, std::min<int64_t>(keys, 20)));
      args.gridHeight = double(pick(1, std::max<int64_t>(1, keys / int64_t(args.gridWidth))));
      args.gridStart = double(pick(0, keys - int64_t(args.gridWidth * args.gridHeight)));
      args.radius = double(pick(0, 4));
      args.causalGrid = double(random() % 2);
    }
    if (args.maskShape == 4) {
      args.gridWidth = double(pick(1, 8));
      args.gridHeight = double(pick(1, 6));
      args.factor = double(pick(1, 4));
      queries = int64_t(args.gridWidth * args.gridHeight);
      keys = queries * int64_t(args.factor * args.factor);
    }
    static const DType types[] = {DType::f32, DType::f32, DType::f16, DType::bf16};
    const DType stored = types[random() % 4];
    query = std::make_unique<Typed>(random, std::vector<int64_t>{batch, heads, queries, headDim}, types[random() % 4], 1.5f);
    key = std::make_unique<Typed>(random, std::vector<int64_t>{batch, kvHeads, keys, headDim}, stored, 1.5f);
    value = std::make_unique<Typed>(random, std::vector<int64_t>{batch, kvHeads, keys, valueDim}, stored, 1);
    args.query = query->view();
    args.key = key->view();
    args.value = value->view();
    args.scale = 1 / std::sqrt(double(headDim));
    chooseScores();
    chooseMask();
    chooseOutputs();
  }

  void chooseScores() {
    if (random() % 4 == 0) args.softcap = 10;
    if (random() % 3 == 0) {
      bias = Tensor({random() % 2 ? batch : 1, random() % 2 ? heads : 1, random() % 2 ? queries : std::min<int64_t>(queries, 1), keys});
      bias.fill(random);
      const bool hides = random() % 2;
      for (int64_t i = 0; hides && i < bias.rows(); ++i)
        for (int64_t j = 0; j < keys; ++j)
          if (random() % 3 == 0) bias.row(i)[j] = -std::numeric_limits<float>::infinity();
      args.bias = bias.view();
    }
    if (random() % 4 == 0) {
      slopes = Tensor({heads});
      for (int64_t h = 0; h < heads; ++h) slopes.row(0)[h] = float(std::exp2(-double(h + 1)));
      args.slopes = slopes.view();
    }
    if (random() % 4 == 0) {
      sinks = Tensor({heads});
      sinks.fill(random);
      args.sinks = sinks.view();
    } else if (random() % 4 == 0) {
      args.offByOne = 1;
    }
    if (args.softcap == 0 && random() % 4 == 0 && queries + keys > 0) {
      const int64_t width = pick(1, 9);
      content = Tensor({batch, heads, queries, width});
      position = Tensor({batch, heads, keys, width});
      content.fill(random);
      position.fill(random);
      for (int64_t i = 0; i < queries + keys - 1; ++i) relative.push_back(int32_t(random() % uint64_t(width)));
      const int64_t count = int64_t(relative.size());
      args.relativeIndex = contiguous(relative.data(), DType::i32, 1, &count);
      args.contentToPosition = content.view();
      if (random() % 2) args.positionToContent = position.view();
    }
  }

  void chooseMask() {
    if (args.maskShape < 2 && random() % 3 == 0) {
      args.window = double(pick(1, 60));
      if (random() % 2) args.sinkTokens = double(pick(0, 9));
    }
    if (args.maskShape == 1) {
      args.blockQuery = double(pick(1, 40));
      args.blockKey = double(pick(1, 200));
      const int64_t dims[] = {random() % 2 ? heads : 1, (queries + int64_t(args.blockQuery) - 1) / int64_t(args.blockQuery), (keys + int64_t(args.blockKey) - 1) / int64_t(args.blockKey)};
      blocks.resize(size_t(dims[0] * dims[1] * dims[2]) + 1);
      for (uint8_t& x : blocks) x = random() % 2;
      args.mask = contiguous(blocks.data(), DType::u8, 3, dims);
    }
    if (args.maskShape == 2) {
      const int64_t dims[] = {queries, (queries + 31) / 32};
      tree.resize(size_t(dims[0] * dims[1]) + 1);
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j <= i; ++j)
          if (j == i || random() % 3 == 0) tree[size_t(i * dims[1] + j / 32)] |= int32_t(uint32_t(1) << (j % 32));
      args.mask = contiguous(tree.data(), DType::i32, 2, dims);
    }
  }

  void chooseOutputs() {
    out = Tensor({batch, heads, queries, valueDim}, 3);
    logSumExp = Tensor({batch, heads, queries});
    args.out = out.view();
    args.logSumExp = logSumExp.view();
    if (random() % 2) {
      sums = Tensor({batch, heads, keys});
      args.columnSums = sums.view();
      args.columnQueries = double(random() % 2 ? queries : pick(0, queries));
    }
    if (random() % 3 == 0) {
      scores = Tensor({batch, heads, queries, keys}, 1);
      args.scores = scores.view();
    }
  }

  bool seen(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t p = keys - queries + i;
    if (args.causal != 0 && j > p) return false;
    if (args.window > 0 && (args.causal != 0 ? p - j : std::abs(p - j)) >= args.window && j >= args.sinkTokens) return false;
    if (args.bias.present() && biasAt(b, h, i, j) == -std::numeric_limits<double>::infinity()) return false;
    switch (int(args.maskShape)) {
      case 1: return blocks[size_t(((args.mask.dims[0] > 1 ? h : 0) * args.mask.dims[1] + i / int64_t(args.blockQuery)) * args.mask.dims[2] + j / int64_t(args.blockKey))] != 0;
      case 2: return j < keys - queries || (tree[size_t(i * args.mask.dims[1] + (j - keys + queries) / 32)] >> ((j - keys + queries) % 32) & 1);
      case 3: {
        const int64_t start = int64_t(args.gridStart), width = int64_t(args.gridWidth), end = start + width * int64_t(args.gridHeight);
        if (i < start || i >= end) return j <= i;
        if (j < start) return true;
        if (j >= end || (args.causalGrid != 0 && j > i)) return false;
        return std::abs((i - start) / width - (j - start) / width) <= args.radius && std::abs((i - start) % width - (j - start) % width) <= args.radius;
      }
      case 4: {
        const int64_t width = int64_t(args.gridWidth), factor = int64_t(args.factor);
        return j / (width * factor) / factor == i / width && j % (width * factor) / factor == i % width;
      }
      default: return true;
    }
  }
  double biasAt(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const auto clip = [&](int64_t x, size_t axis) { return bias.dims[axis] == 1 ? 0 : x; };
    return bias.row((clip(b, 0) * bias.dims[1] + clip(h, 1)) * bias.dims[2] + clip(i, 2))[j];
  }
  double logit(int64_t b, int64_t h, int64_t i, int64_t j) const {
    const int64_t g = h / (heads / kvHeads);
    double s = 0;
    for (int64_t d = 0; d < headDim; ++d) s += query->at(b, h, i, d) * key->at(b, g, j, d);
    s *= args.scale;
    if (args.softcap > 0) s = args.softcap * std::tanh(s / args.softcap);
    if (args.relativeIndex.present()) {
      const int32_t x = relative[size_t(i - j + keys - 1)];
      s += args.scale * (double(content.row((b * heads + h) * queries + i)[x]) + (args.positionToContent.present() ? double(position.row((b * heads + h) * keys + j)[x]) : 0));
    }
    if (args.slopes.present()) s -= double(slopes.row(0)[h]) * double(std::abs(keys - queries + i - j));
    if (args.bias.present()) s += biasAt(b, h, i, j);
    return s;
  }
  double extra(int64_t h) const { return args.offByOne != 0 ? 0 : args.sinks.present() ? double(sinks.row(0)[h]) : -std::numeric_limits<double>::infinity(); }
};

void near(double got, double want, const std::string& where) {
  if (std::isinf(want)) { ASSERT_EQ(got, want) << where; }
  else { ASSERT_NEAR(got, want, 3e-5 + 1e-4 * std::fabs(want)) << where; }
}

void expectFormula(const Random& r, const std::string& name) {
  std::vector<double> sums(static_cast<size_t>(r.keys));
  for (int64_t b = 0; b < r.batch; ++b)
    for (int64_t h = 0; h < r.heads; ++h) {
      std::fill(sums.begin(), sums.end(), 0);
      for (int64_t i = 0; i < r.queries; ++i) {
        const int64_t row = (b * r.heads + h) * r.queries + i;
        const std::string where = name + " b" + std::to_string(b) + " h" + std::to_string(h) + " i" + std::to_string(i);
        const Reference want = referenceRow(
            r.keys, r.valueDim, [&](int64_t j) { return r.seen(b, h, i, j); }, [&](int64_t j) { return r.logit(b, h, i, j); },
            [&](int64_t j, int64_t d) { return r.value->at(b, h / (r.heads / r.kvHeads), j, d); }, r.extra(h));
        for (int64_t d = 0; d < r.valueDim; ++d) near(r.out.row(row)[d], want.out[size_t(d)], where + " d" + std::to_string(d));
        near(r.logSumExp.row(b * r.heads + h)[i], want.logSumExp, where + " logSumExp");
        for (int64_t j = 0; j < r.keys; ++j) {
          if (r.args.scores.present()) near(r.scores.row(row)[j], r.seen(b, h, i, j) ? r.logit(b, h, i, j) : -std::numeric_limits<double>::infinity(), where + " score " + std::to_string(j));
          if (i >= r.queries - r.args.columnQueries) sums[size_t(j)] += want.weights[size_t(j)];
        }
        if (::testing::Test::HasFatalFailure()) return;
      }
      for (int64_t j = 0; r.args.columnSums.present() && j < r.keys; ++j) near(r.sums.row(b * r.heads + h)[j], sums[size_t(j)], name + " sum " + std::to_string(j));
      if (::testing::Test::HasFatalFailure()) return;
    }
}

TEST(Attention, IsTheFormula) {
  for (unsigned seed = 0; seed < cases(60); ++seed) {
    for (Isa isa : targets()) {
      Random r(seed);
      const Status status = run(isa, Op::attention, r.args, 1 + int(seed % 3));
      ASSERT_FALSE(status) << seed << " " << status.argument << " " << status.message;
      EXPECT_TRUE(r.out.guardsIntact());
      EXPECT_TRUE(r.logSumExp.guardsIntact());
      expectFormula(r, std::string(isaName(isa)) + " seed " + std::to_string(seed) + " shape " + std::to_string(int(r.args.maskShape)));
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Attention, DoesNotDependOnThreads) {
  for (unsigned seed = 0; seed < cases(60); ++seed)
    for (Isa isa : targets()) {
      Random one(seed), other(seed);
      ASSERT_FALSE(run(isa, Op::attention, one.args, 1));
      ASSERT_FALSE(run(isa, Op::attention, other.args, 2 + int(seed % 3)));
      EXPECT_EQ(std::memcmp(one.out.data.data(), other.out.data.data(), one.out.data.size() * sizeof(float)), 0) << seed;
      EXPECT_EQ(std::memcmp(one.logSumExp.data.data(), other.logSumExp.data.data(), one.logSumExp.data.size() * sizeof(float)), 0) << seed;
      EXPECT_EQ(one.sums.data, other.sums.data) << seed;
    }
}

// A NaN key and value are visible in the rows that see them and nowhere else.
TEST(Attention, HiddenNaNStaysHidden) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (unsigned seed = 0; seed < cases(150); ++seed)
    for (Isa isa : targets()) {
      Random clean(seed), dirty(seed);
      if (clean.keys == 0) continue;
      const int64_t bad = int64_t(seed * 7 % uint64_t(clean.keys));
      dirty.key->set(dirty.key->index(0, 0, bad, 0), nan);
      dirty.value->set(dirty.value->index(0, 0, bad, dirty.valueDim - 1), nan);
      ASSERT_FALSE(run(isa, Op::attention, clean.args, 1));
      ASSERT_FALSE(run(isa, Op::attention, dirty.args, 1));
      for (int64_t h = 0; h < clean.heads; ++h)
        for (int64_t i = 0; i < clean.queries; ++i) {
          const bool sees = h < clean.heads / clean.kvHeads && clean.seen(0, h, i, bad);
          for (int64_t d = 0; d < clean.valueDim; ++d) {
            const float got = dirty.out.row(h * clean.queries + i)[d];
            if (sees) { ASSERT_TRUE(std::isnan(got)) << isaName(isa) << " seed " << seed; }
            else { ASSERT_FLOAT_EQ(got, clean.out.row(h * clean.queries + i)[d]) << isaName(isa) << " seed " << seed << " row " << i; }
          }
        }
    }
}

// Any group of queries gives the same bits as all of them (the tree and grid shapes are bound to their number of queries).
TEST(Attention, ARowDoesNotDependOnOthers) {
  for (unsigned seed = 0; seed < cases(60); ++seed)
    for (Isa isa : targets()) {
      Random all(seed), few(seed);
      if (all.args.maskShape > 0 || all.args.bias.present() || all.args.relativeIndex.present() || all.args.scores.present() || all.queries < 2) continue;
      ASSERT_FALSE(run(isa, Op::attention, all.args, 1));
      const int64_t last = 1 + int64_t(seed % uint64_t(all.queries - 1));  // the last queries only: positions count from the end
      AttentionArgs args = few.args;
      args.columnSums = {};
      for (View* view : {&args.query, &args.out, &args.logSumExp}) {
        view->data = view->as<std::byte>() + (all.queries - last) * view->strides[2] * int64_t(elementBytes(view->dtype));
        view->dims[2] = last;
      }
      ASSERT_FALSE(run(isa, Op::attention, args, 2));
      for (int64_t h = 0; h < all.batch * all.heads; ++h)
        for (int64_t i = all.queries - last; i < all.queries; ++i)
          ASSERT_EQ(std::memcmp(all.out.row(h * all.queries + i), few.out.row(h * all.queries + i), size_t(all.valueDim) * sizeof(float)), 0) << isaName(isa) << " seed " << seed;
    }
}

// A decoded token reads keys and values where they lie, a prompt converts whole blocks first: the bits are the same, for rows
// side by side, with gaps or in pages, and for int8 with its scales.
TEST(Attention, ADecodedTokenIsThatOfAPrompt) {
  constexpr int64_t kKeys = 300, kQueries = 60, kDim = 64, kHeads = 2, kPageSize = 64;
  for (Isa isa : targets())
    for (DType type : {DType::f32, DType::f16, DType::bf16, DType::i8})
      for (const bool paged : {false, true}) {
        if (paged && type == DType::i8) continue;  // int8 has no block table
        std::mt19937 random(5);
        const std::vector<int64_t> dims = paged ? std::vector<int64_t>{1, 5, kPageSize, kDim} : std::vector<int64_t>{1, 1, kKeys, kDim};
        const DType made = type == DType::i8 ? DType::f32 : type;
        Typed query(random, {1, kHeads, kQueries, kDim}, DType::f32, 1.5f), key(random, dims, made, 1.5f), value(random, dims, made, 1);
        std::vector<int8_t> keyBytes(kKeys * kDim), valueBytes(kKeys * kDim);
        for (int8_t& x : keyBytes) x = int8_t(random());
        for (int8_t& x : valueBytes) x = int8_t(random());
        Tensor keyScale({1, 1, kKeys}), valueScale({1, 1, kKeys}), out({1, kHeads, kQueries, kDim}), one({1, kHeads, 1, kDim});
        for (Tensor* scale : {&keyScale, &valueScale})
          for (int64_t j = 0; j < kKeys; ++j) scale->row(0)[j] = 0.001f * float(1 + random() % 20);
        std::vector<int32_t> table{3, 1, 4, 0, 2}, lengths{int32_t(kKeys)};
        AttentionArgs args = plainArgs(query, key, value, out, 0.125);
        args.causal = 1;
        if (type == DType::i8) {
          args.quantized = 1;
          args.key = contiguous(keyBytes.data(), DType::i8, 4, dims.data());
          args.value = contiguous(valueBytes.data(), DType::i8, 4, dims.data());
          args.keyScale = keyScale.view();
          args.valueScale = valueScale.view();
        }
        if (paged) {
          const int64_t tableDims[] = {1, 1, 5}, lengthDims[] = {1, 1};
          for (View* view : {&args.key, &args.value}) {
            view->rank = 3;
            for (int i = 0; i < 3; ++i) view->dims[i] = view->dims[i + 1];
            for (int i = 0; i < 3; ++i) view->strides[i] = view->strides[i + 1];
          }
          args.blockTable = contiguous(table.data(), DType::i32, 3, tableDims);
          args.lengths = contiguous(lengths.data(), DType::i32, 2, lengthDims);
        }
        ASSERT_FALSE(run(isa, Op::attention, args, 1));
        AttentionArgs last = args;
        last.out = one.view();
        last.query.data = last.query.as<float>() + (kQueries - 1) * last.query.strides[2];
        last.query.dims[2] = 1;
        ASSERT_FALSE(run(isa, Op::attention, last, 2));
        for (int64_t h = 0; h < kHeads; ++h)
          ASSERT_EQ(std::memcmp(one.row(h), out.row(h * kQueries + kQueries - 1), kDim * sizeof(float)), 0) << isaName(isa) << " type " << int(type) << " paged " << paged;
      }
}

TEST(Attention, WritesHalfPrecision) {
  for (Isa isa : targets())
    for (DType type : {DType::f16, DType::bf16}) {
      Random r(11);
      ASSERT_FALSE(run(isa, Op::attention, r.args, 1));
      std::mt19937 random(1);
      Typed half(random, {r.batch, r.heads, r.queries, r.valueDim}, type, 1);
      AttentionArgs args = r.args;
      args.out = half.view();
      ASSERT_FALSE(run(isa, Op::attention, args, 1));
      for (int64_t b = 0; b < r.batch; ++b)
        for (int64_t h = 0; h < r.heads; ++h)
          for (int64_t i = 0; i < r.queries; ++i)
            for (int64_t d = 0; d < r.valueDim; ++d)
              ASSERT_EQ(half.at(b, h, i, d), rounded(type, r.out.row((b * r.heads + h) * r.queries + i)[d]));
    }
}

TEST(Attention, RefusesWhatDoesNotFit) {
  const auto code = [](const std::function<void(AttentionArgs&)>& spoil) {
    std::mt19937 random(1);
    Typed query(random, {1, 4, 6, 16}, DType::f32, 1), key(random, {1, 2, 9, 16}, DType::f32, 1), value(random, {1, 2, 9, 16}, DType::f32, 1);
    Tensor out({1, 4, 6, 16}), sums({1, 4, 9});
    AttentionArgs args = plainArgs(query, key, value, out, 1);
    spoil(args);
    return run(Isa::scalar, Op::attention, args).code;
  };
  EXPECT_EQ(code([](AttentionArgs&) {}), Code::ok);
  EXPECT_EQ(code([](AttentionArgs& a) { a.query.rank = 3; }), Code::shape);
  EXPECT_EQ(code([](AttentionArgs& a) { a.query.dims[1] = 3; }), Code::shape);
  EXPECT_EQ(code([](AttentionArgs& a) { a.key.dims[3] = 8; }), Code::shape);
  EXPECT_EQ(code([](AttentionArgs& a) { a.value.dims[2] = 8; }), Code::shape);
  EXPECT_EQ(code([](AttentionArgs& a) { a.out.dims[2] = 5; }), Code::shape);
  EXPECT_EQ(code([](AttentionArgs& a) { a.key.dtype = DType::i32; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.value.dtype = DType::f16; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.query.strides[3] = 2; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.window = -1; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.window = std::nan(""); }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.maskShape = 9; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.maskShape = 2; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.maskShape = 3; }), Code::shape);
  EXPECT_EQ(code([](AttentionArgs& a) { a.quantized = 3; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.columnSums = a.out; }), Code::argument);
  EXPECT_EQ(code([](AttentionArgs& a) { a.bias = a.out; }), Code::shape);
  int32_t past[] = {0, 4, 99}, falling[] = {4, 2, 6};
  const int64_t three = 3;
  EXPECT_EQ(code([&](AttentionArgs& a) { a.cuQuery = a.cuKey = contiguous(past, DType::i32, 1, &three); }), Code::argument);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.cuQuery = a.cuKey = contiguous(falling, DType::i32, 1, &three); }), Code::argument);
}

// Merging partials over disjoint keys equals attention over all of them.
TEST(MergeStates, IsAttentionOverAllKeys) {
  for (Isa isa : targets())
    for (unsigned seed = 0; seed < cases(30); ++seed) {
      std::mt19937 random(seed);
      const int64_t keys = 3 + int64_t(random() % 90), cut = 1 + int64_t(random() % uint64_t(keys - 2)), dim = 40;
      Typed query(random, {2, 3, 5, dim}, DType::f32, 1), key(random, {2, 3, keys, dim}, DType::f32, 1), value(random, {2, 3, keys, dim}, DType::f32, 1);
      Tensor whole({2, 3, 5, dim}), wholeLse({2, 3, 5}), parts({2, 2, 3, 5, dim}), partsLse({2, 2, 3, 5}), merged({2, 3, 5, dim}), mergedLse({2, 3, 5});
      AttentionArgs args = plainArgs(query, key, value, whole, 0.2);
      args.logSumExp = wholeLse.view();
      ASSERT_FALSE(run(isa, Op::attention, args));
      for (int part = 0; part < 2; ++part) {
        AttentionArgs piece = args;
        for (View* view : {&piece.key, &piece.value}) {
          view->data = view->as<float>() + (part ? cut * view->strides[2] : 0);
          view->dims[2] = part ? keys - cut : cut;
        }
        piece.out.data = parts.row(part * 2 * 3 * 5);
        piece.logSumExp.data = partsLse.row(part * 2 * 3);
        ASSERT_FALSE(run(isa, Op::attention, piece));
      }
      ASSERT_FALSE(run(isa, Op::mergeStates, MergeStatesArgs{parts.view(), partsLse.view(), merged.view(), mergedLse.view()}, 2));
      for (int64_t i = 0; i < 30; ++i)
        for (int64_t d = 0; d < dim; ++d) ASSERT_NEAR(merged.row(i)[d], whole.row(i)[d], 1e-5);
      for (int64_t i = 0; i < 6; ++i)
        for (int64_t t = 0; t < 5; ++t) ASSERT_NEAR(mergedLse.row(i)[t], wholeLse.row(i)[t], 1e-5);
    }
}

TEST(StickBreaking, IsTheFormula) {
  for (Isa isa : targets())
    for (unsigned seed = 0; seed < cases(40); ++seed) {
      std::mt19937 random(seed);
      const int64_t keys = int64_t(random() % 300), queries = 1 + int64_t(random() % 60), dim = 1 + int64_t(random() % 50);
      const bool current = random() % 2, add = random() % 2;
      const DType type = random() % 2 ? DType::f32 : DType::bf16;
      Typed query(random, {1, 4, queries, dim}, DType::f32, 1), key(random, {1, 2, keys, dim}, type, 1), value(random, {1, 2, keys, dim}, type, 1);
      Tensor out({1, 4, queries, dim}), remainder({1, 4, queries});
      ASSERT_FALSE(run(isa, Op::stickBreaking, StickBreakingArgs{query.view(), key.view(), value.view(), out.view(), remainder.view(), 0.3, double(current), double(add)}, 2));
      for (int64_t h = 0; h < 4; ++h)
        for (int64_t i = 0; i < queries; ++i) {
          const int64_t p = keys - queries + i;
          std::vector<double> want(static_cast<size_t>(dim));
          double left = 1;
          for (int64_t j = current ? p : p - 1; j >= 0; --j) {
            double s = 0;
            for (int64_t d = 0; d < dim; ++d) s += query.at(0, h, i, d) * key.at(0, h / 2, j, d);
            const double beta = 1 / (1 + std::exp(-0.3 * s));
            for (int64_t d = 0; d < dim; ++d) want[size_t(d)] += left * beta * value.at(0, h / 2, j, d);
            left *= 1 - beta;
          }
          for (int64_t d = 0; d < dim; ++d) {
            const double extra = add && p >= 0 ? left * value.at(0, h / 2, p, d) : 0;
            ASSERT_NEAR(out.row(h * queries + i)[d], want[size_t(d)] + extra, 3e-5) << isaName(isa) << " seed " << seed;
          }
          ASSERT_NEAR(remainder.row(h)[i], left, 2e-5) << isaName(isa) << " seed " << seed;
        }
    }
}

}  // namespace
}  // namespace tl::test
