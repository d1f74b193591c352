// A child forked after the parent has used its threads can go on calling the library: the pool's threads do not exist there,
// and waiting for them would never end.
#include <dlfcn.h>
#include <signal.h>

#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;

void check_child(int parent_threads, int child_threads) {
    for (const Kind& format : all_kinds()) {
        const Problem problem(format, DType::f32, 64, 259, 771, true);
        fastffn::Context context(parent_threads);
        auto expected = problem.output();
        problem.run(context, expected).value();
        std::fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            alarm(60);
            auto y = problem.output();
            fastffn::Context fresh(child_threads);
            if (!problem.run(fresh, y).ok() || y != expected) _exit(1);
            // The parent's own context, copied by fork, works as well.
            context.set_threads(child_threads);
            if (!problem.run(context, y).ok() || y != expected) _exit(2);
            const auto packed = pack_random(format, 300, 200, 1);
            if (!fastffn::verify_packed(view(packed)).ok()) _exit(3);
            _exit(0);
        }
        const int end = wait_for(child);
        CHECK(end == 0) << format.name() << ": the child ended with " << end
                        << (end == 128 + SIGALRM ? " (it hung)" : "");
        auto y = problem.output();
        CHECK(problem.run(context, y).ok() && y == expected) << "the parent after the fork";
    }
}

TEST(child_after_the_pool_was_used) { check_child(4, 4); }
TEST(child_with_the_default_number_of_threads) { check_child(0, 0); }
TEST(child_of_a_serial_parent) { check_child(1, 4); }

// Somebody else's OpenMP region before the fork: libgomp's pool is one for the whole process.
TEST(child_after_a_foreign_openmp_region) {
    void* library = dlopen("libgomp.so.1", RTLD_NOW);
    if (!library) return check::skip("no libgomp.so.1");
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    Parallel parallel = nullptr;
    void* symbol = dlsym(library, "GOMP_parallel");
    std::memcpy(&parallel, &symbol, sizeof parallel);
    parallel([](void*) {}, nullptr, 4, 0);
    const Problem problem(Format::f32, DType::f32, 64, 259, 771, true);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        fastffn::Context context(4);
        auto y = problem.output();
        _exit(problem.run(context, y).ok() ? 0 : 1);
    }
    const int end = wait_for(child);
    CHECK(end == 0) << "the child ended with " << end << (end == 128 + SIGALRM ? " (it hung)" : "");
}

TEST(child_of_a_child) {
    const Problem problem(Format::bf16, DType::f32, 64, 259, 771, true);
    fastffn::Context context(4);
    auto expected = problem.output();
    problem.run(context, expected).value();
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        auto y = problem.output();
        if (!problem.run(context, y).ok() || y != expected) _exit(1);
        const pid_t grandchild = fork();
        if (grandchild == 0) {
            alarm(60);
            _exit(problem.run(context, y).ok() && y == expected ? 0 : 2);
        }
        _exit(wait_for(grandchild));
    }
    CHECK(wait_for(child) == 0);
}

TEST(default_threads_in_a_child) {
    const Problem problem(Format::f32, DType::f32, 64, 259, 771, true);
    auto y = problem.output();
    fastffn::Context context(4);
    problem.run(context, y).value();
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        _exit(fastffn::default_threads());
    }
    CHECK(wait_for(child) == fastffn::default_threads());
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
