// Maps in NCHW layout for kernels that need the channels of a pixel together.
#pragma once

#include <cstring>

#include "kernels.h"
#include "scratch.h"

namespace pelk {

// Splits the channels of float32 maps into blocks, one per SIMD vector. Planes are packed
// into channels_last and unpacked from it one block of one image at a time, in the cache.
// The last block starts early enough to be full; the channels that it repeats are skipped
// in its results.
class ChannelBlocks {
 public:
  ChannelBlocks(const Kernels& kernels, const PixelProblem& whole)
      : lanes(kernels.pixels->lanes),
        count((whole.channels + lanes - 1) / lanes),
        problem(whole),
        bytes(whole_lines(whole.height * whole.width * lanes * sizeof(float))),
        whole_(whole),
        kernels_(kernels),
        pixels_(whole.height * whole.width) {
    problem.batch = 1;
    problem.channels = lanes;
  }

  // The first channel of a block, and how many of its channels the one before has.
  int64_t first_channel(int64_t block) const {
    return kernels_.pixels->channel(whole_, block);
  }
  int64_t skipped(int64_t block) const { return block * lanes - first_channel(block); }

  // A block in `bytes` of memory.
  Pixels in_memory(char* memory) const {
    return {reinterpret_cast<float*>(memory), 0, lanes};
  }

  // Reads a block of an image of planes, of which `stride` is the distance.
  Pixels pack(const Pixels& planes, int64_t block, char* memory) const {
    (*kernels_.transpose)(planes.data + first_channel(block) * planes.stride,
                          planes.stride, memory, lanes, lanes, pixels_, kFloat32);
    return in_memory(memory);
  }

  // Writes a block but for the channels that the one before has, by way of `bytes` of
  // memory if there are any.
  void unpack(const Pixels& packed, const Pixels& planes, int64_t block,
              char* memory) const {
    float* to = planes.data + first_channel(block) * planes.stride;
    const int64_t skip = skipped(block);
    float* all = skip ? reinterpret_cast<float*>(memory) : to;
    (*kernels_.transpose)(packed.data, lanes, all, skip ? pixels_ : planes.stride,
                          pixels_, lanes, kFloat32);
    for (int64_t c = skip; skip && c < lanes; ++c)
      std::memcpy(to + c * planes.stride, all + c * pixels_, pixels_ * sizeof(float));
  }

  const int64_t lanes, count;
  PixelProblem problem;  // of one block
  const size_t bytes;

 private:
  PixelProblem whole_;
  const Kernels& kernels_;
  const int64_t pixels_;
};

}  // namespace pelk
