// Json: writes a JSON document in order. Numbers that are not finite become null.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace bench {

class Json {
  public:
    Json& begin_object() { return open('{'); }
    Json& end_object() { return close('}'); }
    Json& begin_array() { return open('['); }
    Json& end_array() { return close(']'); }

    Json& key(std::string_view name) {
        separate();
        quote(name);
        text_ += ": ";
        after_key_ = true;
        return *this;
    }
    Json& value(std::string_view text) {
        separate();
        quote(text);
        return *this;
    }
    Json& value(const char* text) { return value(std::string_view(text)); }
    Json& value(double number) {
        char text[40];
        std::snprintf(text, sizeof text, "%.9g", number);
        return raw(std::isfinite(number) ? text : "null");
    }
    Json& value(std::int64_t number) { return raw(std::to_string(number)); }
    Json& value(int number) { return raw(std::to_string(number)); }
    Json& value(bool flag) { return raw(flag ? "true" : "false"); }
    Json& null() { return raw("null"); }

    template <typename Value>
    Json& field(std::string_view name, const Value& content) {
        key(name);
        return value(content);
    }

    const std::string& text() const { return text_; }

  private:
    Json& raw(const std::string& text) {
        separate();
        text_ += text;
        return *this;
    }
    Json& open(char bracket) {
        separate();
        text_ += bracket;
        first_ = true;
        ++depth_;
        return *this;
    }
    Json& close(char bracket) {
        --depth_;
        if (!first_) new_line();
        text_ += bracket;
        first_ = false;
        return *this;
    }
    void separate() {
        if (after_key_) {
            after_key_ = false;
            return;
        }
        if (depth_ == 0) return;
        if (!first_) text_ += ',';
        first_ = false;
        new_line();
    }
    void new_line() {
        text_ += '\n';
        text_.append(static_cast<std::size_t>(depth_), ' ');
    }
    void quote(std::string_view text) {
        text_ += '"';
        for (char c : text) {
            if (c == '"' || c == '\\') {
                text_ += '\\';
                text_ += c;
            } else if (static_cast<unsigned char>(c) < 0x20) {
                char escape[8];
                std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
                text_ += escape;
            } else {
                text_ += c;
            }
        }
        text_ += '"';
    }

    std::string text_;
    int depth_ = 0;
    bool first_ = true, after_key_ = false;
};

}  // namespace bench
