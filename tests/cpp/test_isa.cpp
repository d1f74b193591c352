// FASTFFN_ISA, what really runs, and what happens when the operating system refuses AMX.
//
// The library reads the environment once, so each case runs this program again with the case as its argument.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cstddef>

#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::Isa;

// Child: runs every format and prints "<format> <active kernel> <last kernel>" per line, or the error of a call.
int child_kernels() {
    const Status status = fastffn::check_isa();
    std::printf("check %d %s\n", static_cast<int>(status.code()), status.message().c_str());
    const fastffn::CpuReport& report = fastffn::cpu_report();
    std::printf("isa %s %s\nreason %s\n", fastffn::isa_name(report.found), fastffn::isa_name(report.chosen),
                report.reason.c_str());
    for (const Kind& format : all_kinds())
        for (std::int64_t tokens : {1, 40}) {
            fastffn::Context context(1);
            const Problem problem(format, DType::f32, tokens, 100, 70, true);
            auto y = problem.output();
            const Status call = problem.run(context, y);
            std::string name;
            const Status active = fastffn::active_kernel(format, format.options, &name);
            if (!call.ok() || !active.ok()) {
                std::printf("error %d %d %s\n", static_cast<int>(call.code()), static_cast<int>(active.code()),
                            call.message().c_str());
            } else {
                std::string numbers = fastffn::format_name(format);
                for (const auto& option : format.options)  // those that choose kernels
                    if (option.name == "values" || option.name == "order" || option.value.text() == "bf16")
                        numbers += "-" + option.value.text();
                std::printf("ran %s %s %s\n", numbers.c_str(), name.c_str(), context.last_kernel());
            }
        }
    return 0;
}

// Child: the same under a seccomp filter that refuses arch_prctl(ARCH_REQ_XCOMP_PERM, …) with EPERM.
int child_refused() {
    const sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x1023, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog filter = {};
    filter.len = sizeof program / sizeof program[0];
    filter.filter = const_cast<sock_filter*>(program);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
        std::printf("no seccomp\n");
        return 77;
    }
    return child_kernels();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Isa best() {
    static const Isa isa = [] {
        std::string text;
        run_self("child_kernels", {{"FASTFFN_ISA", nullptr}}, &text);
        for (int i = fastffn::isa_count - 1; i > 0; i--)
            if (contains(text, std::string("isa ") + fastffn::isa_name(static_cast<Isa>(i)) + " "))
                return static_cast<Isa>(i);
        return Isa::ref;
    }();
    return isa;
}

// The tag of a kernel may be that of a lower level, where the level adds nothing to the format, but never of a higher one.
void check_tags(const std::string& text, Isa level) {
    int lines = 0;
    for (std::size_t at = 0; (at = text.find("ran ", at)) != std::string::npos; at++, lines++) {
        char format[48], active[32], last[32];
        CHECK(std::sscanf(text.c_str() + at, "ran %47s %31s %31s", format, active, last) == 3);
        CHECK(std::strcmp(active, last) == 0) << format << ": active " << active << ", ran " << last;
        const char* const tag = std::strchr(last, '/');
        CHECK(tag != nullptr && std::strncmp(last, format, static_cast<std::size_t>(tag - last)) == 0) << last;
        // "sparse24-int8" multiplies what "int8" does.
        const char* const values = std::strchr(format, '-');
        const char* const numbers = values ? values + 1 : format;
        if (tag == nullptr) continue;
        int found = -1;
        for (int i = 0; i < fastffn::isa_count; i++)
            if (std::strcmp(tag + 1, fastffn::isa_name(static_cast<Isa>(i))) == 0 ||
                (std::strcmp(tag + 1, "avx512") == 0 && i == 2))
                found = i;
        CHECK(found >= 0 && found <= static_cast<int>(level)) << last << " at level " << fastffn::isa_name(level);
        // Levels that were made for a format run it; a level with vectors runs no plain loops.
        const bool is_bf16 = std::strcmp(numbers, "bf16") == 0;
        const bool is_codes = std::strncmp(format, "ternary", 7) == 0 || std::strncmp(format, "int4", 4) == 0;
        const bool is_int8 = std::strcmp(numbers, "int8") == 0 || (is_codes && !is_bf16);
        const bool is_ordered = std::strcmp(numbers, "rows") == 0 || std::strcmp(numbers, "columns") == 0;
        if (level == Isa::amx && (is_bf16 || is_int8) && !is_ordered)
            CHECK(found == static_cast<int>(Isa::amx)) << last;
        if (level == Isa::avx512bf16 && is_bf16) CHECK(found == static_cast<int>(Isa::avx512bf16)) << last;
        if (level == Isa::avx512vnni && is_int8) CHECK(found == static_cast<int>(Isa::avx512vnni)) << last;
        if (level >= Isa::avx512 && !is_int8) CHECK(found >= static_cast<int>(Isa::avx512)) << last;
        if (level >= Isa::avx2) CHECK(found >= static_cast<int>(Isa::avx2)) << last;
        if (level == Isa::ref) CHECK(found == 0) << last;
    }
    CHECK(lines == 2 * static_cast<int>(all_kinds().size())) << text;
}

TEST(forced_levels_run) {
    for (int i = 0; i <= static_cast<int>(best()); i++) {
        const char* const name = fastffn::isa_name(static_cast<Isa>(i));
        std::string text;
        CHECK(run_self("child_kernels", {{"FASTFFN_ISA", name}}, &text) == 0);
        CHECK(contains(text, "check 0")) << text;
        CHECK(contains(text, std::string(" ") + name + "\n")) << "chosen: " << text;
        CHECK(contains(text, std::string("FASTFFN_ISA=") + name)) << "the reason names the variable: " << text;
        check_tags(text, static_cast<Isa>(i));
    }
}

TEST(avx512_means_the_best_of_avx512) {
    std::string text;
    CHECK(run_self("child_kernels", {{"FASTFFN_ISA", "avx512"}}, &text) == 0);
    if (best() >= Isa::avx512) {
        const Isa expected = best() == Isa::amx ? Isa::avx512bf16 : best();
        CHECK(contains(text, "check 0")) << text;
        check_tags(text, expected);
    } else {
        CHECK(contains(text, "check 2")) << text;
    }
}

TEST(empty_means_unset) {
    std::string text;
    run_self("child_kernels", {{"FASTFFN_ISA", ""}}, &text);
    CHECK(contains(text, "check 0")) << text;
    check_tags(text, best());
}

TEST(unknown_levels_are_errors) {
    for (const char* name : {"sse2", "AVX2", "amx ", "avx10"}) {
        std::string text;
        CHECK(run_self("child_kernels", {{"FASTFFN_ISA", name}}, &text) == 0);
        CHECK(contains(text, "check 1") && contains(text, name) && contains(text, "avx512vnni")) << text;
        CHECK(!contains(text, "ran ")) << "a call went through: " << text;
        CHECK(contains(text, "error 1 1 ")) << text;
    }
}

TEST(levels_that_the_cpu_lacks_are_errors) {
    if (best() == Isa::amx) return check::skip("this machine has every level");
    for (int i = static_cast<int>(best()) + 1; i < fastffn::isa_count; i++) {
        const char* const name = fastffn::isa_name(static_cast<Isa>(i));
        std::string text;
        CHECK(run_self("child_kernels", {{"FASTFFN_ISA", name}}, &text) == 0);
        CHECK(contains(text, "check 2") && contains(text, name) && contains(text, fastffn::isa_name(best()))) << text;
        CHECK(!contains(text, "ran ")) << text;
        CHECK(contains(text, "error 2 2 ")) << text;
    }
}

// The operating system may refuse AMX to a process, here by a seccomp filter. Unforced, the best level without it runs.
TEST(permission_refused_by_seccomp) {
    if (best() != Isa::amx) return check::skip("no AMX and no emulator");
    std::string text;
    if (run_self("child_refused", {{"FASTFFN_ISA", nullptr}}, &text) == 77) return check::skip("no seccomp here");
    CHECK(contains(text, "check 0")) << text;
    CHECK(contains(text, "isa avx512bf16 avx512bf16")) << text;
    CHECK(contains(text, "refused")) << "the reason says so: " << text;
    check_tags(text, Isa::avx512bf16);
    text.clear();
    run_self("child_refused", {{"FASTFFN_ISA", "amx"}}, &text);
    CHECK(contains(text, "check 2") && contains(text, "refused")) << text;
    CHECK(!contains(text, "ran ")) << text;
    // A level below AMX needs no permission.
    text.clear();
    run_self("child_refused", {{"FASTFFN_ISA", "avx2"}}, &text);
    CHECK(contains(text, "check 0")) << text;
    check_tags(text, Isa::avx2);
}

TEST(permission_refused_by_the_emulator) {
    if (best() != Isa::amx || std::getenv("LD_PRELOAD") == nullptr) return check::skip("no emulator");
    std::string text;
    run_self("child_kernels", {{"FASTFFN_ISA", nullptr}, {"AMX_EMULATOR_REFUSE", "1"}}, &text);
    CHECK(contains(text, "isa avx512bf16 avx512bf16") && contains(text, "refused")) << text;
    check_tags(text, Isa::avx512bf16);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::strcmp(argv[1], "child_kernels") == 0) return child_kernels();
    if (argc == 2 && std::strcmp(argv[1], "child_refused") == 0) return child_refused();
    return check::run_all(argc, argv);
}
