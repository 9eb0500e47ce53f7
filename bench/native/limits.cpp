// Usage: limits THREADS [BYTES]. Prints {"f32": FLOP/s of one core, "read": bytes a second that so many cores read together, of
// BYTES that they read again and again}.
#include "limits.h"

#include <cstdio>

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int64_t bytes = argc > 2 ? std::atoll(argv[2]) : limits::kReadBytes;
  if (threads < 1 || threads > 1024 || bytes < 1) return 2;
  std::printf("{\"f32\": %.0f, \"read\": %.0f}\n", limits::multiplyAddPeak(), limits::readBandwidth(threads, bytes));
  return 0;
}
