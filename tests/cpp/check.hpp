// A tiny test harness: TEST(name) { CHECK(condition) << "more"; } and one main() per program.
//
// A failed CHECK prints where and what, and the test goes on; a test that has failed checks fails the program.
// Arguments select tests by part of their names.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
    const char* name;
    void (*run)();
};

inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

inline long& failures() {
    static long count = 0;
    return count;
}

inline long& checks() {
    static long count = 0;
    return count;
}

inline std::string& skip_reason() {
    static std::string reason;
    return reason;
}

struct Registration {
    Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// Collects the message of one check and reports it when the statement ends.
class Report {
  public:
    Report(bool ok, const char* file, int line, const char* text) : ok_(ok) {
        ++checks();
        if (!ok) out_ << file << ":" << line << ": CHECK(" << text << ") failed ";
    }
    ~Report() {
        if (ok_) return;
        if (++failures() <= 40) std::fprintf(stderr, "  %s\n", out_.str().c_str());
    }
    template <typename T>
    Report& operator<<(const T& value) {
        if (!ok_) out_ << value;
        return *this;
    }

  private:
    bool ok_;
    std::ostringstream out_;
};

// Says that the rest of the test means nothing on this machine.
inline void skip(const std::string& reason) { skip_reason() = reason; }

inline int run_all(int argc, char** argv) {
    long run = 0, failed = 0, skipped = 0;
    for (const Test& test : tests()) {
        bool selected = argc < 2;
        for (int i = 1; i < argc; i++) selected = selected || std::strstr(test.name, argv[i]) != nullptr;
        if (!selected) continue;
        const long before = failures();
        skip_reason().clear();
        try {
            test.run();
        } catch (const std::exception& error) {
            ++failures();
            std::fprintf(stderr, "  %s threw: %s\n", test.name, error.what());
        }
        ++run;
        const bool ok = failures() == before;
        if (!ok) ++failed;
        if (ok && !skip_reason().empty()) {
            ++skipped;
            std::printf("skipped %s: %s\n", test.name, skip_reason().c_str());
        } else {
            std::printf("%s %s\n", ok ? "ok     " : "FAILED ", test.name);
        }
        std::fflush(stdout);
    }
    std::printf("%ld tests, %ld checks, %ld failed, %ld skipped\n", run, checks(), failed, skipped);
    return failed == 0 && run > 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                            \
    static void test_##name();                                                \
    static const check::Registration registration_##name(#name, test_##name); \
    static void test_##name()

#define CHECK(condition) check::Report(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
