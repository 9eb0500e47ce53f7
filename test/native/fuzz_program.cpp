// Coverage-guided fuzzing of encoded programs: Program::decode() and, where that takes one, run() over small memory. Compiled by Clang with
// -fsanitize=fuzzer this is a libFuzzer target; by GCC, whose -fsanitize-coverage=trace-pc calls the hook below, it brings its own loop:
// `fuzz_program SECONDS` ends with a JSON line of figures, and leaves `program-current` where a sanitizer ended it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

#include "../../cpp/exec/program.h"
#include "../../cpp/kernels/table.h"

using namespace tl;

namespace {

// A word is the wide number behind 0x80, else the signed byte itself: short inputs make whole programs.
std::vector<double> wordsOf(const uint8_t* data, size_t size) {
  std::vector<double> words;
  for (size_t i = 0; i < size; ++i) {
    if (data[i] == 0x80 && i + 8 < size) {
      double value;
      std::memcpy(&value, data + i + 1, 8);
      words.push_back(value);
      i += 8;
    } else {
      words.push_back(double(int8_t(data[i])));
    }
  }
  return words;
}

enum class Outcome { refused, failed, ran };

Outcome tryProgram(const uint8_t* data, size_t size) {
  std::vector<double> words = {double(0x746C6F6F6D), 2};  // magic and version: no use in guessing them
  for (const double word : wordsOf(data, size)) words.push_back(word);
  std::vector<float> values(256, 0.5f);
  std::vector<Operand> constants = {{DType::f32, values.data(), int64_t(values.size() * sizeof(float))}};
  Program program;
  if (Program::decode(words.data(), words.size(), constants, program)) return Outcome::refused;
  if (program.arenaBytes() > (1 << 20) || program.cache().binding >= 0) return Outcome::refused;
  std::vector<std::vector<std::byte>> memory;
  std::vector<Operand> bindings;
  for (const DType type : program.bindings()) {
    if (type == DType::packed || type == DType::cache) return Outcome::refused;
    memory.emplace_back(1024, std::byte{1});
    bindings.push_back({type, memory.back().data(), int64_t(memory.back().size())});
  }
  const std::vector<int64_t> symbols(size_t(program.symbols()), 3);
  const std::vector<double> scalars(size_t(program.scalars()), 1);
  std::vector<std::byte> arena(size_t(program.arenaBytes()) + 64);
  ThreadPool& pool = ThreadPool::shared();
  ThreadPool::Turn turn(pool, 1);
  std::byte* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(arena.data()) + 63) / 64 * 64);
  return program.run({*kernelTable(Isa::scalar), pool, symbols.data(), bindings.data(), scalars.data(), aligned, nullptr}) ? Outcome::failed : Outcome::ran;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tryProgram(data, size);
  return 0;
}

#if !defined(TL_LIBFUZZER)

namespace {
constexpr size_t kSlots = 1 << 16;
uint8_t seen[kSlots], now[kSlots];
}  // namespace

// Called at each edge of the code that is compiled with trace-pc.
extern "C" __attribute__((no_sanitize("address", "undefined"), no_sanitize_coverage)) void __sanitizer_cov_trace_pc() {
  const uintptr_t place = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  now[(place ^ (place >> 16)) & (kSlots - 1)] = 1;
}

namespace {

bool learn() {
  bool more = false;
  for (size_t i = 0; i < kSlots; ++i)
    if (now[i] && !seen[i]) seen[i] = 1, more = true;
  return more;
}

std::vector<uint8_t> mutate(std::vector<uint8_t> bytes, const std::vector<std::vector<uint8_t>>& inputs, std::mt19937& random) {
  const auto below = [&](size_t count) { return count ? random() % count : 0; };
  static const double wide[] = {1024, 65536, 2147483647, 2147483648.0, 4294967296.0, 9007199254740991.0, 9007199254740992.0, 1e300, -1e300, 0.5};
  for (size_t left = 1 + below(4); left > 0; --left) {
    const size_t at = below(bytes.size() + 1);
    switch (below(6)) {
      case 0: if (at < bytes.size()) bytes[at] = uint8_t(below(12)); break;
      case 1: if (at < bytes.size()) bytes[at] = uint8_t(random()); break;
      case 2: bytes.insert(bytes.begin() + long(at), uint8_t(below(8))); break;
      case 3: if (at < bytes.size()) bytes.erase(bytes.begin() + long(at)); break;
      case 4: {
        const double value = wide[below(10)];
        uint8_t word[9] = {0x80};
        std::memcpy(word + 1, &value, 8);
        bytes.insert(bytes.begin() + long(at), word, word + 9);
        break;
      }
      default: {
        const std::vector<uint8_t>& other = inputs[below(inputs.size())];
        const size_t from = below(other.size() + 1), count = below(other.size() - from + 1);
        bytes.insert(bytes.begin() + long(at), other.begin() + long(from), other.begin() + long(from + count));
      }
    }
    if (bytes.size() > 2048) bytes.resize(2048);
  }
  return bytes;
}

// A whole program of one op: header, then its views (dense rows of the arena) and parameters.
std::vector<uint8_t> programOf(int op) {
  double arena = 4096;
  std::vector<uint8_t> bytes = {1, 1, 0, 1, 0x80};  // symbols, constants, bindings, scalars, arena bytes
  bytes.insert(bytes.end(), reinterpret_cast<uint8_t*>(&arena), reinterpret_cast<uint8_t*>(&arena) + 8);
  bytes.insert(bytes.end(), {1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0});
  bytes.push_back(uint8_t(op));
  for (int v = 0; v < kOps[op].views; ++v) bytes.insert(bytes.end(), {1, 0, 0xff, 0, uint8_t(v * 8), 1, 2, 0xff, 0, 2, 4, 0xff, 0, 4, 1});
  for (int p = 0; p < kOps[op].doubles; ++p) bytes.insert(bytes.end(), {0, 1});
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  std::mt19937 random(1);
  std::vector<std::vector<uint8_t>> inputs;
  for (int op = 0; op < int(Op::count); ++op) inputs.push_back(programOf(op));
  long executions = 0, counts[3] = {0, 0, 0};
  const size_t seeds = inputs.size();
  for (size_t next = 0; double(std::clock()) / CLOCKS_PER_SEC < seconds; ++next) {
    const std::vector<uint8_t> bytes = next < seeds ? inputs[next] : mutate(inputs[random() % inputs.size()], inputs, random);
    if (FILE* file = std::fopen("program-current", "wb")) {
      std::fwrite(bytes.data(), 1, bytes.size(), file);
      std::fclose(file);
    }
    std::memset(now, 0, sizeof now);
    ++counts[int(tryProgram(bytes.data(), bytes.size()))];
    ++executions;
    if (learn() && next >= seeds) inputs.push_back(bytes);
  }
  std::remove("program-current");
  size_t reached = 0;
  for (const uint8_t slot : seen) reached += slot;
  std::printf("{\"executions\":%ld,\"refused\":%ld,\"failed\":%ld,\"ran\":%ld,\"blocks\":%zu,\"inputs\":%zu}\n", executions, counts[0], counts[1], counts[2], reached, inputs.size());
}

#endif
