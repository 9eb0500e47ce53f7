// What a kernel or the executor answers: a code, and what to say about it. No exceptions below the binding.
#pragma once
#include <cstdint>

namespace tl {

enum class Code : int32_t { ok = 0, argument, shape, memory, cancelled, numeric, format, io, internal };

struct Status {
  Code code = Code::ok;
  const char* op = "";        // static strings only: a Status is copied freely and owns nothing
  const char* argument = "";
  const char* message = "";
  int64_t expected = 0, got = 0;  // for shapes and sizes; meaning given by `message`
  explicit operator bool() const { return code != Code::ok; }  // true = there is an error
};

inline Status shapeError(const char* op, const char* argument, const char* message, int64_t expected, int64_t got) {
  return {Code::shape, op, argument, message, expected, got};
}
inline Status argumentError(const char* op, const char* argument, const char* message, int64_t got = 0) {
  return {Code::argument, op, argument, message, 0, got};
}

#define TL_TRY(expression)                            \
  do {                                                \
    if (::tl::Status tlStatus = (expression)) return tlStatus; \
  } while (0)

}  // namespace tl
