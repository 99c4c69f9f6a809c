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
extern const InstructionSet instruction_sets[];

}  // namespace pelk
