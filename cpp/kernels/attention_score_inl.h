// What happens to a score between q · k and softmax, on rows of one block; scores carry log2(e) from here on. Included after
// attention_tile_inl.h.
#pragma once

namespace tl::TL_TARGET {

// Per (sequence, key/value head); strides in elements, 0 where broadcast.
struct ScoreOperands {
  const float* bias = nullptr;  // s + bias[head][query][key]
  int64_t biasHead = 0, biasQuery = 0;
  const float* slopes = nullptr;  // s − slopes[head] · |p − j|                                 ALiBi, arXiv 2108.12409
  // s + scale · (contentToPosition[head][query][x] + positionToContent[head][key][x]), x = relativeIndex[query − key + keys − 1]
  // (DeBERTa's disentangled attention, arXiv 2006.03654)
  const float *contentToPosition = nullptr, *positionToContent = nullptr;
  int64_t contentHead = 0, contentQuery = 0, positionHead = 0, positionKey = 0;
  const int32_t* relativeIndex = nullptr;
  bool any() const { return bias || slopes || relativeIndex; }
};

// s = 2x/cap · log2(e) on entry (the queries were scaled so); cap · tanh(x/cap) · log2(e) on return, by
// tanh(y) = 1 − 2/(1 + e^2y) (arXiv 2408.00118).
inline void softcapRow(float* scores, int count, float cap) {
  const F32 one = broadcast(1.0f), minusTwo = broadcast(-2 * cap), scale = broadcast(cap), most = broadcast(60.0f);
  constexpr int together = 4;
  for (int j = 0; j < count; j += together * kLanes) {
    F32 e[together];
#pragma GCC unroll 8
    for (int i = 0; i < together; ++i) e[i] = min(most, load(scores + j + i * kLanes));
    exp2Clamped(e);
#pragma GCC unroll 8
    for (int i = 0; i < together; ++i) store(scores + j + i * kLanes, add(scale, div(minusTwo, add(one, e[i]))));
  }
}

// `position` of the query, `key` the block's first, `count` its keys. Keys whose bias is −inf are taken out of `seen`.
inline void modifyRow(const ScoreOperands& operands, float scale, int64_t head, int64_t query, int64_t position, int64_t keys, int64_t key, int count,
                      float* scores, Visible& seen) {
  const F32 toLog2 = broadcast(kLog2E);
  if (operands.slopes) {
    const F32 slope = broadcast(-operands.slopes[head] * kLog2E);
    alignas(64) float lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = float(i);
    const F32 first = sub(load(lane), broadcast(float(position - key)));
    for (int j = 0; j < count; j += kLanes)
      store(scores + j, mulAdd(slope, abs(add(first, broadcast(float(j)))), load(scores + j)));
  }
  if (operands.relativeIndex) {
    const float* content = operands.contentToPosition ? operands.contentToPosition + head * operands.contentHead + query * operands.contentQuery : nullptr;
    const float* position0 = operands.positionToContent ? operands.positionToContent + head * operands.positionHead + key * operands.positionKey : nullptr;
    const int32_t* index = operands.relativeIndex + query - key + keys - 1;
    for (int j = 0; j < count; ++j) {
      const int32_t x = index[-j];
      scores[j] += scale * ((content ? content[x] : 0) + (position0 ? position0[j * operands.positionKey + x] : 0));
    }
  }
  if (operands.bias) {
    const float* bias = operands.bias + head * operands.biasHead + query * operands.biasQuery + key;
    for (int j = 0; j < count; j += kLanes) {
      const F32 b = count - j >= kLanes ? load(bias + j) : loadPart(bias + j, count - j);
      store(scores + j, mulAdd(b, toLog2, load(scores + j)));
      const uint32_t hidden = bitsOfLanes(lessThan(b, broadcast(-std::numeric_limits<float>::max())));
      seen.word[j / 32] &= ~(hidden << (j % 32));
    }
  }
}

}  // namespace tl::TL_TARGET
