// Which experts the tokens of a moe choose.
#pragma once

#include <cstdint>

#include "options.hpp"

namespace bench {

// ids: [calls, tokens, picks], different in each token. Returns how many experts a call uses, on average.
double fill_routings(const Problem& problem, std::int64_t calls, std::int32_t* ids);

}  // namespace bench
