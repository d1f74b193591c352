#include "formats/options.hpp"

#include <cstdio>
#include <cstring>

#include "core/names.hpp"

namespace fastffn {

namespace {

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return text;
}

}  // namespace

std::string OptionValue::to_string() const {
    switch (kind_) {
        case Kind::text: return "'" + text_ + "'";
        case Kind::integer: return std::to_string(integer_);
        case Kind::real: return number(real_);
        case Kind::boolean: return integer_ ? "true" : "false";
        default: return "an array of shape " + array_.shape_string();
    }
}

const OptionValue* OptionReader::find(const char* name) {
    bool is_known = false;
    for (const std::string& known : known_) is_known = is_known || known == name;
    if (!is_known) known_.emplace_back(name);
    for (const PackOption& option : options_)
        if (option.name == name) return &option.value;
    return nullptr;
}

void OptionReader::fail(const std::string& text) {
    if (error_.empty()) error_ = text;
}

void OptionReader::expected(const char* name, const OptionValue& value, const std::string& what) {
    fail("option '" + std::string(name) + "' of format '" + format_ + "' is " + value.to_string() + ", expected " +
         what);
}

bool OptionReader::has(const char* name) { return find(name) != nullptr; }

int OptionReader::choice(const char* name, const std::vector<std::string>& values, int fallback) {
    const OptionValue* value = find(name);
    if (!value) return fallback;
    for (std::size_t i = 0; i < values.size(); ++i)
        if (value->kind() == OptionValue::Kind::text && value->text() == values[i]) return static_cast<int>(i);
    expected(name, *value, quoted_list(values));
    return fallback;
}

std::int64_t OptionReader::integer(const char* name, std::int64_t lowest, std::int64_t highest, std::int64_t fallback) {
    const OptionValue* value = find(name);
    if (!value) return fallback;
    if (value->kind() == OptionValue::Kind::integer && value->integer() >= lowest && value->integer() <= highest)
        return value->integer();
    expected(name, *value, "a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
    return fallback;
}

double OptionReader::real(const char* name, double lowest, double highest, double fallback) {
    const OptionValue* value = find(name);
    if (!value) return fallback;
    const bool is_number = value->kind() == OptionValue::Kind::real || value->kind() == OptionValue::Kind::integer;
    if (is_number && value->real() >= lowest && value->real() <= highest) return value->real();
    expected(name, *value, "a number from " + number(lowest) + " to " + number(highest));
    return fallback;
}

bool OptionReader::boolean(const char* name, bool fallback) {
    const OptionValue* value = find(name);
    if (!value) return fallback;
    if (value->kind() == OptionValue::Kind::boolean) return value->boolean();
    expected(name, *value, "true or false");
    return fallback;
}

const TensorView* OptionReader::array(const char* name) {
    const OptionValue* value = find(name);
    if (!value) return nullptr;
    if (value->kind() == OptionValue::Kind::array) return &value->array();
    expected(name, *value, "an array");
    return nullptr;
}

int OptionReader::choice_unless_given(const char* name, const std::vector<std::string>& values, int fallback,
                                      int given) {
    const OptionValue* value = find(name);
    if (!value) return fallback;
    if (value->kind() == OptionValue::Kind::text) return choice(name, values, fallback);
    if (value->kind() != OptionValue::Kind::boolean) return given;
    expected(name, *value, quoted_list(values) + ", a number or an array");
    return fallback;
}

const TensorView* OptionReader::given_array(const char* name) {
    const OptionValue* value = find(name);
    return value && value->kind() == OptionValue::Kind::array ? &value->array() : nullptr;
}

bool is_contiguous(const TensorView& array) noexcept {
    if (array.size() == 0) return true;
    std::int64_t step = 1;
    for (int i = array.ndim - 1; i >= 0; --i) {
        if (array.shape[i] != 1 && array.strides[i] != step) return false;
        step *= array.shape[i];
    }
    return true;
}

Status OptionReader::finish() {
    for (std::size_t i = 0; i < options_.size(); ++i) {
        const std::string& name = options_[i].name;
        bool is_known = false;
        for (const std::string& known : known_) is_known = is_known || known == name;
        if (!is_known)
            fail("format '" + std::string(format_) + "' has no option '" + name + "'; it takes " +
                 (known_.empty() ? "none" : quoted_list(known_, "and")));
        for (std::size_t j = 0; j < i; ++j)
            if (options_[j].name == name) fail("option '" + name + "' is given twice");
    }
    if (error_.empty()) return {};
    return {StatusCode::invalid_argument, std::string(operation_) + ": " + error_};
}

}  // namespace fastffn
