#include "text.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace bench {

namespace {

// A decimal number at the front of `text`; returns how many characters it took, 0 if there is none.
std::size_t leading_number(std::string_view text, double* value) {
    std::size_t used = 0;
    while (used < text.size() && ((text[used] >= '0' && text[used] <= '9') || text[used] == '.')) ++used;
    const std::string digits(text.substr(0, used));
    char* end = nullptr;
    *value = std::strtod(digits.c_str(), &end);
    return end == digits.c_str() + digits.size() ? used : 0;
}

}  // namespace

bool parse_int(std::string_view text, std::int64_t* value) {
    if (text.empty() || text.size() > 18) return false;
    std::int64_t result = 0;
    for (char c : text) {
        if (c < '0' || c > '9') return false;
        result = result * 10 + (c - '0');
    }
    *value = result;
    return true;
}

bool parse_bytes(std::string_view text, std::int64_t* value) {
    double number = 0;
    const std::size_t used = leading_number(text, &number);
    if (used == 0) return false;
    std::string_view unit = text.substr(used);
    double factor = 1;
    if (!unit.empty()) {
        const std::string_view letters = "KMGT";
        const std::size_t power = letters.find(unit[0] >= 'a' ? static_cast<char>(unit[0] - 32) : unit[0]);
        if (power != std::string_view::npos) {
            factor = std::pow(1024.0, static_cast<double>(power + 1));
            unit.remove_prefix(1);
            if (unit == "iB") unit = "";
        }
        if (unit == "B") unit = "";
        if (!unit.empty()) return false;
    }
    if (number * factor > 1e15) return false;
    *value = static_cast<std::int64_t>(number * factor);
    return true;
}

bool parse_seconds(std::string_view text, double* value) {
    double number = 0;
    const std::size_t used = leading_number(text, &number);
    if (used == 0) return false;
    const std::string_view unit = text.substr(used);
    if (unit == "ms") {
        number *= 1e-3;
    } else if (!unit.empty() && unit != "s") {
        return false;
    }
    *value = number;
    return true;
}

bool parse_shape(std::string_view text, std::int64_t* first, std::int64_t* second) {
    const std::size_t cross = text.find('x');
    std::int64_t a = 0, b = 0;
    if (cross == std::string_view::npos || !parse_int(text.substr(0, cross), &a) ||
        !parse_int(text.substr(cross + 1), &b) || a == 0 || b == 0) {
        return false;
    }
    *first = a;
    *second = b;
    return true;
}

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts;
    while (!text.empty()) {
        const std::size_t end = text.find(separator);
        parts.emplace_back(text.substr(0, end));
        if (end == std::string_view::npos) break;
        text.remove_prefix(end + 1);
        if (text.empty()) parts.emplace_back();
    }
    return parts;
}

std::string format_digits(double value, int digits) {
    if (!std::isfinite(value)) return "–";
    int magnitude = value == 0 ? 0 : static_cast<int>(std::floor(std::log10(std::fabs(value))));
    // 0.9999 rounds up to 1.00, which has a digit more before the point.
    if (std::fabs(value) >= std::pow(10.0, magnitude + 1) - 0.5 * std::pow(10.0, magnitude + 1 - digits)) ++magnitude;
    const int decimals = std::max(0, digits - 1 - magnitude);
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", std::min(decimals, 9), value);
    return text;
}

std::string format_time(double seconds) {
    if (!std::isfinite(seconds)) return "–";
    const char* units[] = {"s", "ms", "µs", "ns"};
    int unit = 0;
    while (unit < 3 && seconds < 0.9995) {
        seconds *= 1e3;
        ++unit;
    }
    return format_digits(seconds, 3) + " " + units[unit];
}

std::string format_rate(double per_second) {
    if (!std::isfinite(per_second)) return "–";
    const char* units[] = {"", "k", "M", "G", "T", "P"};
    int unit = 0;
    while (unit < 5 && per_second >= 999.5) {
        per_second *= 1e-3;
        ++unit;
    }
    return format_digits(per_second, 3) + " " + units[unit];
}

std::string format_bytes(double bytes) {
    const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (unit < 4 && bytes >= 1023.5) {
        bytes /= 1024;
        ++unit;
    }
    return format_digits(bytes, unit == 0 && bytes < 1000 ? 1 : 3) + " " + units[unit];
}

int display_width(std::string_view text) {
    int width = 0;
    for (char c : text) width += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    return width;
}

std::string pad_left(std::string text, int width) {
    const int missing = width - display_width(text);
    return missing > 0 ? std::string(static_cast<std::size_t>(missing), ' ') + text : text;
}

std::string pad_right(std::string text, int width) {
    const int missing = width - display_width(text);
    return missing > 0 ? text + std::string(static_cast<std::size_t>(missing), ' ') : text;
}

}  // namespace bench
