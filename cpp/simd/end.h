// Closes the instruction region that target.h opened: Clang wants it closed, GCC takes the end of the file. No kernel includes this: CMakeLists.txt
// puts it behind them.
#if defined(TL_TARGET_FEATURES) && !defined(TL_EMULATE_X86) && defined(__clang__)
#pragma clang attribute pop
#endif
