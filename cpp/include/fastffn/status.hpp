// Status: how every public call reports. Messages name the operation, the argument, and what was expected and found.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace fastffn {

enum class StatusCode {
    ok,
    invalid_argument,  // shape, dtype, layout or value: Python raises ValueError
    unsupported,       // valid, but not on this machine or in this build: RuntimeError
    corrupt,           // a packed weight that is damaged, truncated or foreign: ValueError
    out_of_memory,     // the workspace could not be allocated: MemoryError
};

class [[nodiscard]] Status {
  public:
    Status() = default;
    Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

    bool ok() const noexcept { return code_ == StatusCode::ok; }
    StatusCode code() const noexcept { return code_; }
    const std::string& message() const noexcept { return message_; }

    // Throws std::runtime_error with the message unless ok; for callers who prefer exceptions.
    void value() const {
        if (!ok()) throw std::runtime_error(message_);
    }

  private:
    StatusCode code_ = StatusCode::ok;
    std::string message_;
};

}  // namespace fastffn
