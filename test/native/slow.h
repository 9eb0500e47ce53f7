// Whether emulation or a sanitizer makes everything many times slower, so that tests take fewer and smaller cases.
#pragma once

namespace tl::test {

#if defined(TL_EMULATE_X86) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

}  // namespace tl::test
