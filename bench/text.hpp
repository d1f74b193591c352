// Numbers and lists as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

// Parsers return false and leave the output alone when the text is not entirely of that form.
bool parse_int(std::string_view text, std::int64_t* value);  // 0 or more
bool parse_bytes(std::string_view text,
                 std::int64_t* value);                     // 512, 64K, 1.5M, 1G (powers of 1024; "B", "iB" may follow)
bool parse_seconds(std::string_view text, double* value);  // 0.5, 0.5s, 200ms
bool parse_shape(std::string_view text, std::int64_t* first, std::int64_t* second);  // 768x3072
std::vector<std::string> split(std::string_view text, char separator);               // "a,b" → {"a", "b"}; "" → {}

std::string format_time(double seconds);              // 3 significant digits with ns, µs, ms or s
std::string format_rate(double per_second);           // "12.3 G": 3 significant digits with k, M, G, T
std::string format_bytes(double bytes);               // "1.50 MiB"
std::string format_digits(double value, int digits);  // significant digits, never an exponent

// Width on a terminal of UTF-8 text without wide or combining characters.
int display_width(std::string_view text);
std::string pad_left(std::string text, int width);   // right-aligned
std::string pad_right(std::string text, int width);  // left-aligned

}  // namespace bench
