// The conformance vectors of attention (SPEC.md beside them says what each op computes), on every target, with one and two
// threads. They lie in $TOKENLOOM_SHARED/vectors/attention or ../shared beside the repository; skipped where absent.
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "attention_support.h"

namespace tl::test {
namespace {

namespace fs = std::filesystem;

fs::path vectorFolder() {
  if (const char* shared = std::getenv("TOKENLOOM_SHARED")) return fs::path(shared) / "vectors/attention";
  return fs::path(__FILE__).parent_path() / "../../../shared/vectors/attention";
}

// Flat JSON of the kind the vector files hold: strings, numbers, null, lists of numbers, nested objects by dotted path.
class Json {
 public:
  explicit Json(std::string text) : text_(std::move(text)) { value(""); }
  bool has(const std::string& path) const { return values_.count(path) != 0; }
  const std::string& string(const std::string& path) const { return values_.at(path); }
  double number(const std::string& path, double otherwise) const {
    const auto found = values_.find(path);
    if (found == values_.end() || found->second == "null") return otherwise;
    return found->second == "true" ? 1 : found->second == "false" ? 0 : std::stod(found->second);
  }
  std::vector<int64_t> list(const std::string& path) const {
    std::vector<int64_t> all;
    for (int i = 0; has(path + "#" + std::to_string(i)); ++i) all.push_back(std::stoll(string(path + "#" + std::to_string(i))));
    return all;
  }
  std::vector<std::string> keys;  // of the outermost object

 private:
  void space() { while (at_ < text_.size() && std::strchr(" \n\t\r,:", text_[at_])) ++at_; }
  std::string quoted() {
    std::string out;
    for (++at_; text_[at_] != '"'; ++at_) out += text_[at_] == '\\' ? text_[++at_] : text_[at_];
    ++at_;
    return out;
  }
  void value(const std::string& path) {
    space();
    const char c = text_[at_];
    if (c == '{') {
      ++at_;
      for (space(); text_[at_] != '}'; space()) {
        const std::string key = quoted();
        if (path.empty()) keys.push_back(key);
        value(path.empty() ? key : path + "/" + key);
      }
      ++at_;
    } else if (c == '[') {
      ++at_;
      int i = 0;
      for (space(); text_[at_] != ']'; space()) value(path + "#" + std::to_string(i++));
      ++at_;
    } else if (c == '"') {
      values_[path] = quoted();
    } else {
      const size_t start = at_;
      while (at_ < text_.size() && !std::strchr(",}] \n", text_[at_])) ++at_;
      values_[path] = text_.substr(start, at_ - start);
    }
  }
  std::string text_;
  size_t at_ = 0;
  std::map<std::string, std::string> values_;
};

struct Vector {
  struct Entry { DType dtype; std::vector<int64_t> dims; std::vector<std::byte> data; };
  std::map<std::string, Entry> entries;
  Json params{"{}"};
  std::string op;

  explicit Vector(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    uint64_t size = 0;
    file.read(reinterpret_cast<char*>(&size), 8);
    std::string header(size, ' ');
    file.read(header.data(), std::streamsize(size));
    const Json json(header);
    op = json.string("__metadata__/op");
    params = Json(json.string("__metadata__/params"));
    for (const std::string& name : json.keys) {
      if (name == "__metadata__") continue;
      Entry entry;
      const std::string type = json.string(name + "/dtype");
      entry.dtype = type == "F32" ? DType::f32 : type == "I32" ? DType::i32 : DType::u8;
      entry.dims = json.list(name + "/shape");
      const std::vector<int64_t> range = json.list(name + "/data_offsets");
      entry.data.resize(size_t(range[1] - range[0]));
      file.seekg(std::streamoff(8 + size + uint64_t(range[0])));
      file.read(reinterpret_cast<char*>(entry.data.data()), std::streamsize(entry.data.size()));
      entries[name] = std::move(entry);
    }
  }
  View view(const std::string& name) {
    const auto found = entries.find(name);
    if (found == entries.end()) return {};
    Entry& entry = found->second;
    return contiguous(entry.data.data(), entry.dtype, int(entry.dims.size()), entry.dims.data());
  }
  // A tensor to write to, of an output's shape, full of what must not remain.
  View output(const std::string& name, std::vector<float>& data) const {
    const auto found = entries.find(name);
    if (found == entries.end()) return {};
    int64_t count = 1;
    for (int64_t dim : found->second.dims) count *= dim;
    data.assign(size_t(count), kGuard);
    return contiguous(data.data(), DType::f32, int(found->second.dims.size()), found->second.dims.data());
  }
};

std::vector<float> defaultSlopes(int64_t heads) {
  int64_t power = 1;
  while (power * 2 <= heads) power *= 2;
  std::vector<float> slopes;
  for (int64_t i = 0; i < power; ++i) slopes.push_back(float(std::exp2(-8.0 * double(i + 1) / double(power))));
  for (int64_t i = 0; i < heads - power; ++i) slopes.push_back(float(std::exp2(-8.0 * double(2 * i + 1) / double(2 * power))));
  return slopes;
}

AttentionArgs attentionArgs(Vector& v, std::vector<float>& slopes) {
  const Json& p = v.params;
  AttentionArgs args{};
  args.query = v.view("in.q");
  args.key = v.view("in.k");
  args.value = v.view("in.v");
  args.bias = v.view("in.bias");
  args.sinks = v.view("in.sinks");
  args.slopes = v.view("in.slopes");
  args.causal = p.number("causal", 0);
  args.scale = p.number("scale", 1 / std::sqrt(double(args.query.dims[3])));
  args.softcap = p.number("softcap", 0);
  args.window = v.op == "attention.column-sums" ? 0 : p.number("window", 0);
  args.sinkTokens = p.number("sinks", 0);
  args.cuQuery = v.view("in.cuQ");
  args.cuKey = v.view("in.cuK");
  args.offByOne = v.op == "attention.softmax-off-by-one";
  if (v.op == "attention.column-sums") args.columnQueries = p.number("window", double(args.query.dims[2]));
  if (v.op == "attention.alibi" && !args.slopes.present()) {
    slopes = defaultSlopes(args.query.dims[1]);
    const int64_t count = int64_t(slopes.size());
    args.slopes = contiguous(slopes.data(), DType::f32, 1, &count);
  }
  if (v.op == "attention.block-sparse") {
    args.maskShape = 1;
    args.mask = v.view("in.blockMask");
    args.blockQuery = p.number("blockQ", 0);
    args.blockKey = p.number("blockK", 0);
  } else if (v.op == "attention.tree") {
    args.maskShape = 2;
    args.mask = v.view("in.mask");
  } else if (v.op == "attention.neighbor") {
    args.maskShape = 3;
    args.gridStart = p.number("visualStart", 0);
    args.radius = p.number("radius", 0);
    args.causalGrid = p.number("causalVisual", 0);
  } else if (v.op == "attention.cross-region-to-point") {
    args.maskShape = 4;
    args.factor = p.number("scaleFactor", 0);
  }
  args.gridHeight = p.number("gridH", 0);
  args.gridWidth = p.number("gridW", 0);
  if (v.op == "attention.paged") {
    args.key = v.view("in.kPages");
    args.value = v.view("in.vPages");
    args.blockTable = v.view("in.blockTable");
    args.lengths = v.view("in.lengths");
  } else if (v.op == "attention.quantized-kv") {
    args.quantized = p.string("format") == "int8" ? 1 : 2;
    args.key = v.view("in.kQ");
    args.value = v.view("in.vQ");
    args.keyScale = v.view("in.kScale");
    args.keyMinimum = v.view("in.kMin");
    args.valueScale = v.view("in.vScale");
    args.valueMinimum = v.view("in.vMin");
  }
  return args;
}

using Outputs = std::map<std::string, std::vector<float>>;

Status compute(Isa isa, Vector& v, int threads, Outputs& out) {
  const Json& p = v.params;
  const View outView = v.output("out.out", out["out.out"]), logSumExp = v.output("out.lse", out["out.lse"]);
  const View query = v.view("in.q"), key = v.view("in.k"), value = v.view("in.v");
  const double scale = p.number("scale", query.present() ? 1 / std::sqrt(double(query.dims[3])) : 1);
  if (v.op == "attention.merge-states") return run(isa, Op::mergeStates, MergeStatesArgs{v.view("in.out"), v.view("in.lse"), outView, logSumExp}, threads);
  if (v.op == "attention.stick-breaking")
    return run(isa, Op::stickBreaking, StickBreakingArgs{query, key, value, outView, v.output("out.remainder", out["out.remainder"]), scale, p.number("attendCurrent", 0),
                                                         double(p.string("remainder") == "current-value")}, threads);
  if (v.op == "attention.landmark") return run(isa, Op::landmarkAttention, LandmarkAttentionArgs{query, key, value, v.view("in.isLandmark"), outView, scale}, threads);
  if (v.op == "attention.pattention") return run(isa, Op::pattention, PattentionArgs{v.view("in.x"), v.view("in.keys"), v.view("in.values"), outView, scale}, threads);
  if (v.op == "attention.slot")
    return run(isa, Op::slotAttention, SlotAttentionArgs{query, key, value, outView, v.output("out.assign", out["out.assign"]), scale, p.number("eps", 1e-8),
                                                         double(p.string("softmaxOver") != "slots")}, threads);
  std::vector<float> slopes;
  AttentionArgs args = attentionArgs(v, slopes);
  args.out = outView;
  args.logSumExp = logSumExp;
  args.columnSums = v.output("out.sums", out["out.sums"]);
  return run(isa, Op::attention, args, threads);
}

TEST(AttentionVectors, Match) {
  if (!fs::exists(vectorFolder())) GTEST_SKIP() << "no vectors at " << vectorFolder();
  int files = 0;
  for (const auto& entry : fs::directory_iterator(vectorFolder())) {
    const std::string name = entry.path().filename().string();
    if (entry.path().extension() != ".safetensors" || name.rfind("attention.rope", 0) == 0) continue;  // rope: rope_test.cpp
    Vector v(entry.path());
    ++files;
    for (Isa isa : targets()) {
      Outputs first;
      for (int threads : {1, 2}) {
        Outputs got;
        const Status status = compute(isa, v, threads, got);
        ASSERT_FALSE(status) << name << " " << status.argument << " " << status.message;
        for (const auto& [output, data] : got) {
          if (data.empty()) continue;
          const float* want = v.view(output).as<float>();
          for (size_t i = 0; i < data.size(); ++i) {
            if (std::isinf(want[i])) { ASSERT_EQ(data[i], want[i]) << name << " " << output << " " << i << " " << isaName(isa); }
            else { ASSERT_NEAR(data[i], want[i], 2e-5 + 1e-4 * std::fabs(want[i])) << name << " " << output << " " << i << " " << isaName(isa); }
          }
          if (threads > 1) { ASSERT_EQ(std::memcmp(data.data(), first[output].data(), data.size() * sizeof(float)), 0) << name << " " << output; }
        }
        if (threads == 1) first = std::move(got);
      }
    }
  }
  EXPECT_GT(files, 30);
}

}  // namespace
}  // namespace tl::test
