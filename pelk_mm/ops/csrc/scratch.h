// Memory for intermediate results.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

#include "guards.h"

namespace pelk {

// Rounds up to whole cache lines, on which pieces of scratch memory start.
constexpr size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Memory that a thread keeps between calls, as much as the largest call needed, so that
// small calls do not fault its pages in again.
class Scratch {
 public:
  // Contents are undefined. Valid until the thread's next call; throws std::bad_alloc.
  static char* get(size_t bytes) {
    thread_local Scratch scratch;
    if (bytes > scratch.bytes_) {
      std::free(scratch.memory_);
      scratch.bytes_ = 0;
      const size_t rounded = whole_lines(bytes);
      scratch.memory_ = static_cast<char*>(std::aligned_alloc(64, rounded));
      if (!scratch.memory_) throw std::bad_alloc();
      scratch.bytes_ = rounded;
    }
    PELK_ALLOW(scratch.memory_, bytes);
    PELK_FORBID(scratch.memory_ + bytes, scratch.bytes_ - bytes);
    return scratch.memory_;
  }

  ~Scratch() { std::free(memory_); }

 private:
  char* memory_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace pelk
