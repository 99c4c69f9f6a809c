// The instruction sets that the kernels were compiled for.
#pragma once

#include "kernels.h"

namespace pelk {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();  // by this processor
};

// Best first, ended by one without a name.
const InstructionSet instruction_sets[] = {
#ifdef PELK_X86
    {"avx512", &avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma");
     }},
    {"avx2", &avx2::kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", &portable::kernels, [] { return true; }},
    {},
};

}  // namespace pelk
