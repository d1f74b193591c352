// The race check: which accesses of a launch's threads nothing puts in order.
//
// Kernels compiled with -fsanitize=thread call a function for every load and store. Those functions are defined here, not in
// ThreadSanitizer's library, for CUDA threads instead of the operating system's: every thread has a vector clock; barriers,
// warp operations and atomics join clocks. Two accesses to one byte of shared or device memory, one of them a write, of which
// neither thread's clock has seen the other fail the launch; so do accesses outside of an array, and reads of shared memory
// that nobody wrote. One schedule is enough for that. Without -fsanitize=thread nothing is checked.
#pragma once

#include <cstddef>

namespace emulator::races {

void begin_launch();
void begin_block(int threads);
void arrive_at_barrier(int id);
void leave_barrier(int id, int thread);
void reset_barrier(int id);
void join_warp(int first_thread, unsigned mask);
void fence();

// [data, data + bytes) inside of a mapping whose other bytes belong to nobody.
void add_allocation(const void* data, std::size_t bytes, const void* mapping, std::size_t mapping_bytes);
void remove_allocation(const void* data);

}  // namespace emulator::races
