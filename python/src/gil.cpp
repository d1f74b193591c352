#include "gil.hpp"

#include <chrono>
#include <thread>

namespace fastffn::python {

namespace {

struct WaitForProcessEnd {
    bool needed = true;
    ~WaitForProcessEnd() {
        while (needed) std::this_thread::sleep_for(std::chrono::hours(1));
    }
};

}  // namespace

#if defined(__GNUC__)
[[gnu::noinline]]
#endif
void GilRelease::take_back(PyThreadState* state) {
    WaitForProcessEnd wait;  // runs when the thread is being unwound
    PyEval_RestoreThread(state);
    wait.needed = false;
}

}  // namespace fastffn::python
