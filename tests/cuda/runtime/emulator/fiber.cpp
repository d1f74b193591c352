#include "emulator/fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "emulator/sanitizer.hpp"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

namespace {
// AddressSanitizer's frames are several times as large.
constexpr std::size_t page = 4096, stack_bytes = FASTFFN_ASAN ? 256 * 1024 : 64 * 1024;
}  // namespace

#if defined(__x86_64__)
// Saves what a call must preserve, and the stack pointer; the rest of the old context is on its stack.
extern "C" void fastffn_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl fastffn_emulator_switch
.hidden fastffn_emulator_switch
.type fastffn_emulator_switch, @function
fastffn_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size fastffn_emulator_switch, .-fastffn_emulator_switch
)");
struct Fiber::Context {};
#else
struct Fiber::Context {
    ucontext_t fiber, scheduler;
};
#endif

Fiber::Fiber() {
    base_ = static_cast<char*>(
        mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_, page, PROT_NONE) != 0) {
        std::perror("cuda emulator: stack of a thread");
        std::abort();
    }
#if !defined(__x86_64__)
    context_ = new Context;
#endif
}

Fiber::~Fiber() {
    unpoison(base_ + page, stack_bytes);
    munmap(base_, page + stack_bytes);
#if !defined(__x86_64__)
    delete context_;
#endif
}

namespace {
// makecontext() and a fresh stack pass no pointer; one thread switches at a time.
thread_local Fiber* starting;
}  // namespace

void Fiber::start(void (*entry)(void*), void* argument) {
    entry_ = entry;
    argument_ = argument;
    fiber_fake_ = nullptr;
    unpoison(base_ + page, stack_bytes);
#if defined(__x86_64__)
    // As the switch leaves a stack: six registers, then where to go. A function is entered with rsp ≡ 8 (mod 16).
    auto* top = reinterpret_cast<std::uint64_t*>(base_ + page + stack_bytes);
    *--top = 0;  // its return address: it never returns
    *--top = reinterpret_cast<std::uint64_t>(+[] { run(starting); });
    for (int i = 0; i < 6; i++) *--top = 0;
    stack_pointer_ = top;
#else
    getcontext(&context_->fiber);
    context_->fiber.uc_stack.ss_sp = base_ + page;
    context_->fiber.uc_stack.ss_size = stack_bytes;
    context_->fiber.uc_link = nullptr;
    makecontext(&context_->fiber, +[] { run(starting); }, 0);
#endif
}

void Fiber::run(Fiber* self) {
    finish_switch(nullptr, &self->scheduler_bottom_, &self->scheduler_size_);
    self->entry_(self->argument_);
    self->leave(true);
    std::abort();  // a fiber that ended was resumed
}

void Fiber::resume() {
    starting = this;
    start_switch(&scheduler_fake_, base_ + page, stack_bytes);
#if defined(__x86_64__)
    fastffn_emulator_switch(&scheduler_, stack_pointer_);
#else
    swapcontext(&context_->scheduler, &context_->fiber);
#endif
    finish_switch(scheduler_fake_, nullptr, nullptr);
}

void Fiber::leave(bool for_good) {
    start_switch(for_good ? nullptr : &fiber_fake_, scheduler_bottom_, scheduler_size_);
#if defined(__x86_64__)
    fastffn_emulator_switch(&stack_pointer_, scheduler_);
#else
    swapcontext(&context_->fiber, &context_->scheduler);
#endif
}

void Fiber::suspend() {
    leave(false);
    finish_switch(fiber_fake_, &scheduler_bottom_, &scheduler_size_);
}

}  // namespace emulator
