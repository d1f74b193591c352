// The race check: which accesses of a block's threads nothing puts in order.
//
// Kernels compiled with -fsanitize=thread call a function for every load and store. These are defined here rather than in
// ThreadSanitizer's library, for CUDA threads instead of those of the operating system: every thread has a vector clock,
// barriers and warp operations join clocks, and two accesses to one byte of shared memory, or of device memory within one
// launch, of which one writes and neither clock has seen the other, fail the launch. So do accesses outside of all arrays and
// reads of shared memory that nobody wrote. In kernels compiled without it, only the accesses of instructions such as
// ldmatrix are seen, and nothing is checked.
#pragma once

#include <cstddef>

namespace emulator::races {

void begin_launch();
void begin_block(int threads);
void arrive_at_barrier(int id);
void leave_barrier(int id, int thread);
void reset_barrier(int id);
void join_warp(int first_thread, unsigned mask);
void add_allocation(const void* data, std::size_t bytes);
void remove_allocation(const void* data);

}  // namespace emulator::races
