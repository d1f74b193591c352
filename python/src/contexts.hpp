// A Context for each call that runs at the moment. Contexts and their workspace are kept for the next call.
#pragma once

#include <memory>

#include "fastffn/context.hpp"

namespace fastffn::python {

class ContextLease {
  public:
    ContextLease();
    ~ContextLease();
    ContextLease(const ContextLease&) = delete;
    ContextLease& operator=(const ContextLease&) = delete;

    Context& operator*() const { return *context_; }

  private:
    std::unique_ptr<Context> context_;
};

// Threads of the calls to come; 0: fastffn::default_threads() at each call.
void set_thread_setting(int threads) noexcept;
int thread_setting() noexcept;

// The kernels that the process's last call ran; "" before the first.
const char* last_kernel() noexcept;

}  // namespace fastffn::python
