// How a format reads its options: every name it asks for is one it has, and finish() refuses the rest.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fastffn/pack_options.hpp"
#include "fastffn/status.hpp"

namespace fastffn {

class OptionReader {
  public:
    // `operation` and `format` go into messages.
    OptionReader(const char* operation, const char* format, const PackOptions& options)
        : operation_(operation), format_(format), options_(options) {}

    bool has(const char* name);
    // Index into `values` of the text given; `fallback` where none was.
    int choice(const char* name, const std::vector<std::string>& values, int fallback);
    std::int64_t integer(const char* name, std::int64_t lowest, std::int64_t highest, std::int64_t fallback);
    double real(const char* name, double lowest, double highest, double fallback);
    bool boolean(const char* name, bool fallback);
    const TensorView* array(const char* name);  // nullptr where none was given
    // As choice(), but a number or an array may be given instead of a name: then `given`.
    int choice_unless_given(const char* name, const std::vector<std::string>& values, int fallback, int given);
    // The array of such an option; nullptr where a name, a number or nothing was given.
    const TensorView* given_array(const char* name);

    // Notes an error of the format's own; the first one counts.
    void fail(const std::string& text);
    // The first error, or one about an option that no one asked for, or that came twice.
    Status finish();

  private:
    const OptionValue* find(const char* name);
    void expected(const char* name, const OptionValue& value, const std::string& what);

    const char* operation_;
    const char* format_;
    const PackOptions& options_;
    std::vector<std::string> known_;
    std::string error_;
};

// Row-major without gaps.
bool is_contiguous(const TensorView& array) noexcept;

}  // namespace fastffn
