// PackOptions: what a format lets the caller of pack() choose, as names and values.
//
//   pack(w, Format::sparse24, {{"values", "int8"}}, out, bytes)
//
// Each format reads the names it knows and refuses the others, so a new format brings its options without a change here.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fastffn/tensor.hpp"

namespace fastffn {

class OptionValue {
  public:
    enum class Kind : std::uint8_t { text, integer, real, boolean, array };

    OptionValue(const char* text) : kind_(Kind::text), text_(text) {}
    OptionValue(std::string text) : kind_(Kind::text), text_(std::move(text)) {}
    OptionValue(bool value) : kind_(Kind::boolean), integer_(value) {}
    OptionValue(int value) : kind_(Kind::integer), integer_(value) {}
    OptionValue(std::int64_t value) : kind_(Kind::integer), integer_(value) {}
    OptionValue(double value) : kind_(Kind::real), real_(value) {}
    OptionValue(const TensorView& array)
        : kind_(Kind::array), array_(array) {}  // not copied: lives as long as the call

    Kind kind() const noexcept { return kind_; }
    const std::string& text() const noexcept { return text_; }
    std::int64_t integer() const noexcept { return integer_; }
    double real() const noexcept { return kind_ == Kind::integer ? static_cast<double>(integer_) : real_; }
    bool boolean() const noexcept { return integer_ != 0; }
    const TensorView& array() const noexcept { return array_; }

    std::string to_string() const;  // "'int8'", "128", "true", "an array of shape (3, 4)": for errors

  private:
    Kind kind_;
    std::string text_;
    std::int64_t integer_ = 0;
    double real_ = 0;
    TensorView array_;
};

struct PackOption {
    std::string name;
    OptionValue value;
};

using PackOptions = std::vector<PackOption>;

}  // namespace fastffn
