// The instruction set in use, for the library's own dispatch. The public report is in fastffn/cpu.hpp.
#pragma once

#include "fastffn/cpu.hpp"

namespace fastffn {

// The level that FASTFFN_ISA and the machine allow; meaningful when check_isa() is ok.
Isa chosen_isa();

}  // namespace fastffn
