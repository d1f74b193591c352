// A stack of its own for each CUDA thread, and the switch between it and the scheduler.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next resume() calls entry(argument). What the stack held before is forgotten, destructors and all.
    void start(void (*entry)(void*), void* argument);
    // Scheduler → fiber; returns at its next suspend() or when its entry returns.
    void resume();
    // Fiber → scheduler.
    void suspend();

  private:
    static void run(Fiber* self);
    void leave(bool for_good);

    char* base_;  // of the mapping; its first page may not be touched
    void* stack_pointer_ = nullptr;
    void* scheduler_ = nullptr;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
    // AddressSanitizer's notes about both stacks.
    void *scheduler_fake_ = nullptr, *fiber_fake_ = nullptr;
    const void* scheduler_bottom_ = nullptr;
    std::size_t scheduler_size_ = 0;
    struct Context;
    Context* context_ = nullptr;  // where the switch is the C library's
};

}  // namespace emulator
