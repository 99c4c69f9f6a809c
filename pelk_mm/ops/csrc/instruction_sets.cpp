#include "instruction_sets.h"

namespace pelk {
namespace {

#ifdef PELK_X86
bool supports_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("fma");
}

bool supports_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

}  // namespace

const InstructionSet instruction_sets[] = {
#ifdef PELK_X86
    {"avx512", &avx512::kernels, supports_avx512},
    {"avx2", &avx2::kernels, supports_avx2},
#endif
    {"portable", &portable::kernels, [] { return true; }},
    {},
};

}  // namespace pelk
