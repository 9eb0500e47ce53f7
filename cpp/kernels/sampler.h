// The sampler chain of sample.cpp, for other ops that draw tokens. Included after simd/target.h.
#pragma once

namespace tl::TL_TARGET {

struct TokenDraw {
  int32_t token = -1;
  float maximum = 0;  // of the logits before any penalty
};

// The chain's numbers and the history of `args` against the vocabulary; its operands otherwise are not looked at.
Status checkSampler(const char* op, int64_t vocabulary, const SampleArgs& args);

// One draw from logits [n] by the chain of `args`. The repetition penalty looks at the history of `args` and at
// path [pathLength], tokens of the vocabulary too. scratch: one thread's.
Status drawToken(const char* op, const float* logits, int64_t n, const SampleArgs& args, const int32_t* path, int64_t pathLength, std::byte* scratch, TokenDraw& draw);

// Natural-log probability of the drawn token under the plain softmax of logits [n].
float logProbability(const float* logits, int64_t n, const TokenDraw& draw);

}  // namespace tl::TL_TARGET
