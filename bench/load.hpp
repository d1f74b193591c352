// How busy other programs keep this machine while we measure.
#pragma once

#include <vector>

namespace bench {

class LoadMeter {
  public:
    // `processes`: our workers, whose time is ours.
    void start(const std::vector<int>& processes);
    // Cores that other programs used since start(), on average; 0 where the system does not tell. Counted in ticks of
    // 10 ms, so good for spans of 0.1 s and more.
    double other_cores() const;

  private:
    struct Reading {
        double when = 0, busy = 0, ours = 0;  // seconds
    };
    Reading read() const;

    std::vector<int> processes_;
    Reading start_;
};

}  // namespace bench
