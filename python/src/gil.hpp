// Running without the GIL.
#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

// Gives the GIL up where `wanted`, and takes it back on destruction. A daemon thread that comes back while the
// interpreter shuts down waits for the end of the process: CPython (before 3.14) would end it by unwinding its stack,
// which C++ answers with std::terminate.
class GilRelease {
  public:
    explicit GilRelease(bool wanted = true) : state_(wanted ? PyEval_SaveThread() : nullptr) {}
    ~GilRelease() {
        if (state_) take_back(state_);
    }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

  private:
    static void take_back(PyThreadState* state);

    PyThreadState* state_;
};

}  // namespace fastffn::python
