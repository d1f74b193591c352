// A line on standard error that says what is being measured and how long it will take. Rewritten in place on a
// terminal; elsewhere one line at a time, at most every ten seconds.
#pragma once

#include <string>

namespace bench {

class Progress {
  public:
    explicit Progress(int total);
    ~Progress() { clear(); }
    void step(const std::string& what);  // the next of `total` begins
    void clear();                        // before printing anything else to the terminal

  private:
    int total_, started_ = 0;
    bool terminal_, shown_ = false;
    double begin_, last_line_;
};

}  // namespace bench
