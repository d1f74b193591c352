// Products of x of 8 bits with ternary weights without groups and with weights of 4 bits in groups of 64 and more
// without minima on Hopper (compute capability
// 9.0, native code for sm_90a), for many tokens.
#pragma once

#include "launch/codes.hpp"

namespace fastffn::cuda {

// Whether the device that is current is one, this build has code for it, and the arguments allow it.
bool sm90_codes_serves(const CodesArgs& args);

// That, and enough tiles.
bool prefers_sm90_codes(const CodesArgs& args);

// cudaErrorNotSupported, with nothing launched, where the driver makes no tensor maps.
cudaError_t launch_sm90_codes(const CodesArgs& args, cudaStream_t stream);

}  // namespace fastffn::cuda
