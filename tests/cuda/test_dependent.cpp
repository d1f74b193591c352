// Launches that overlap (launch/launch.hpp, ptx/dependent.cuh): the results are those of launches in turn, and what a dependent does
// too early shows in the race check.
#include "launch/launch.hpp"
#include "ptx/dependent.cuh"
#include "support.hpp"

using fastffn::cuda::Grid;
using fastffn::cuda::launch;
using support::contains;
using support::Device;

namespace {

enum class Mistake { none, reads_early, writes_early, one_thread_waits, reads_as_constant };

__global__ void make_rows(int* rows, const int* seen) {
    fastffn::ptx::let_next_launch_begin();
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    rows[i] = 3 * i + seen[i];
}

template <Mistake mistake>
__global__ void add_rows(const int* weights, const int* rows, int* seen) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    const int weight = weights[i];
    const int early = mistake == Mistake::reads_early ? rows[i] : 0;
    if (mistake == Mistake::writes_early) seen[i] = 0;
    if (mistake != Mistake::one_thread_waits || threadIdx.x == 0) fastffn::ptx::wait_for_launch();
    const int row = mistake == Mistake::reads_early         ? early
                    : mistake == Mistake::reads_as_constant ? __ldg(rows + i)
                                                            : rows[i];
    seen[i] = weight + row;
}

// Whether both launches ran and the numbers are right.
template <Mistake mistake>
bool is_right(bool is_dependent) {
    std::vector<int> numbers(64);
    for (int i = 0; i < 64; i++) numbers[static_cast<std::size_t>(i)] = 100 * i;
    const Device<int> weights(numbers);
    Device<int> rows(64), seen(std::vector<int>(64, 1));
    if (launch(make_rows, {dim3(2), dim3(32)}, rows.data(), seen.data()) != cudaSuccess) return false;
    Grid grid = {dim3(2), dim3(32)};
    grid.is_dependent = is_dependent;
    if (launch(add_rows<mistake>, grid, weights.data(), rows.data(), seen.data()) != cudaSuccess) return false;
    const auto found = seen.host();
    for (int i = 0; i < 64; i++)
        if (found[static_cast<std::size_t>(i)] != 103 * i + 1) return false;
    return true;
}

}  // namespace

TEST(dependents_wait) {
    for (int architecture : {80, 90}) {
        emulator::set_architecture(architecture);
        CHECK(is_right<Mistake::none>(false) && is_right<Mistake::none>(true)) << emulator::last_failure();
        // Not dependent: it began when the first was done.
        CHECK(is_right<Mistake::reads_early>(false)) << emulator::last_failure();
        CHECK(is_right<Mistake::one_thread_waits>(false)) << emulator::last_failure();
    }
    emulator::set_architecture(80);
}

#ifdef FASTFFN_RACE_CHECK
TEST(what_dependents_do_too_early_shows) {
    emulator::set_architecture(80);
    CHECK(is_right<Mistake::reads_early>(true)) << "no launches overlap there: " << emulator::last_failure();
    emulator::set_architecture(90);
    CHECK(!is_right<Mistake::reads_early>(true) && contains(emulator::last_failure(), "has not waited, has written"))
        << emulator::last_failure();
    CHECK(!is_right<Mistake::writes_early>(true) && contains(emulator::last_failure(), "has not waited, has read"))
        << emulator::last_failure();
    CHECK(!is_right<Mistake::one_thread_waits>(true) && contains(emulator::last_failure(), "has not waited"))
        << emulator::last_failure();
    CHECK(!is_right<Mistake::reads_as_constant>(true) && contains(emulator::last_failure(), "for read-only"))
        << emulator::last_failure();
    CHECK(is_right<Mistake::reads_as_constant>(false)) << "the rows are done: " << emulator::last_failure();
    emulator::set_architecture(80);
}
#endif

int main(int argc, char** argv) { return check::run_all(argc, argv); }
