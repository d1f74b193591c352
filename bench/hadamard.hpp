// The suite `hadamard`: transforms beside a copy of the same bytes, and what they add to a down projection.
#pragma once

#include "options.hpp"

namespace bench {

// Measures and prints; every number is a median over rounds in which both sides take turns. Returns the exit status.
int run_hadamard(const Options& options);

}  // namespace bench
