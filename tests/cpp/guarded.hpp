// Memory that lies right against a page that may not be touched.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace support {

enum class Side { end, begin };

class Guarded {
  public:
    Guarded(std::size_t bytes, Side side) : bytes_(bytes) {
        const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        inner_ = (bytes + page - 1) / page * page;
        if (inner_ == 0) inner_ = page;
        total_ = inner_ + 2 * page;
        base_ = static_cast<std::byte*>(mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE);
        data_ = base_ + page + (side == Side::end ? inner_ - bytes : 0);
        inner_base_ = base_ + page;
    }
    Guarded(const std::vector<std::byte>& content, Side side) : Guarded(content.size(), side) {
        if (!content.empty()) std::memcpy(data_, content.data(), content.size());
        mprotect(inner_base_, inner_, PROT_READ);
    }
    ~Guarded() { munmap(base_, total_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    std::byte* data() const { return data_; }
    std::int64_t size() const { return static_cast<std::int64_t>(bytes_); }

  private:
    std::byte *base_, *inner_base_, *data_;
    std::size_t bytes_, inner_, total_;
};

}  // namespace support
