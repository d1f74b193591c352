// A fast feedforward tree to time: random trees, and tokens that every call finds fresh.
#pragma once

#include <vector>

#include "buffer.hpp"
#include "fastffn/fastffn.hpp"
#include "options.hpp"

namespace bench {

class Trees {
  public:
    Trees(const Problem& problem, bool huge_pages);
    void call(fastffn::Context& context);

    std::int64_t stack_bytes() const { return tree_.bytes() + up_.bytes() + down_.bytes(); }
    std::int64_t touched_bytes() const;  // of rows, that a call of uniformly spread tokens reads

  private:
    Problem problem_;
    Buffer tree_, up_, down_, x_, y_;
    std::int64_t calls_ = 1, next_ = 0;  // different tokens
};

}  // namespace bench
