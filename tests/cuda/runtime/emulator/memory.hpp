// Shared memory of the running block, for the emulator's own files.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

void prepare_shared_memory(std::size_t dynamic_bytes);
// From one block's shared memory to the next one's of a cluster.
std::ptrdiff_t shared_span();
// A message if someone wrote behind the end; empty otherwise.
std::string check_shared_red_zone();
void release_shared_memory();

// An array and the bytes around it that belong to nobody else.
struct SharedRange {
    const unsigned char *data, *mapping;
    std::size_t bytes, mapping_bytes;
};
SharedRange dynamic_shared_range(int rank);
SharedRange shared_variables_range();

// What shared_window_address counts from, in the running thread's block.
unsigned char* shared_window_begin();

// Whether the address is in a variable that kernels declare __shared__, or in the running thread's dynamic shared memory.
bool in_shared_memory(const void* data, std::size_t bytes);

}  // namespace emulator
