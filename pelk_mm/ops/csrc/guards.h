// Gaps between pieces of scratch memory that AddressSanitizer, in a build with it,
// reports the use of. Elsewhere there are none.
#pragma once

#include <cstddef>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define PELK_GUARDS
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define PELK_GUARDS
#endif

#ifdef PELK_GUARDS
#include <sanitizer/asan_interface.h>
#define PELK_ALLOW(memory, bytes) __asan_unpoison_memory_region(memory, bytes)
#define PELK_FORBID(memory, bytes) __asan_poison_memory_region(memory, bytes)
#else
#define PELK_ALLOW(memory, bytes) (void)0
#define PELK_FORBID(memory, bytes) (void)0
#endif

namespace pelk {

// Bytes after each piece.
#ifdef PELK_GUARDS
constexpr size_t kGuard = 64;
#else
constexpr size_t kGuard = 0;
#endif

}  // namespace pelk
