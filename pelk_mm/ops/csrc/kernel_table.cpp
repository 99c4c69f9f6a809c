// The kernels of one instruction set.

#include "kernels.h"

namespace pelk {
namespace PELK_ISA {

extern const Kernels kernels = {&direct_kernels, &fft_kernels, &column_fft_kernels,
                                &pixel_kernels, &transpose_kernel};

}  // namespace PELK_ISA
}  // namespace pelk
