// Single numbers of arrays in host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fastffn/dtype.hpp"

namespace bench::cuda {

float read_number(const std::byte* data, fastffn::DType dtype, std::int64_t index);

// Zero in two of each four places, which two changing from group to group.
void keep_two_of_four(std::byte* data, fastffn::DType dtype, std::int64_t count);

}  // namespace bench::cuda
