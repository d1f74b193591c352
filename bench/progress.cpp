#include "progress.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "team.hpp"
#include "text.hpp"

namespace bench {

namespace {

int terminal_width() {
    winsize size = {};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(int total)
    : total_(total), terminal_(isatty(STDERR_FILENO) == 1), begin_(seconds_now()), last_line_(begin_) {}

void Progress::step(const std::string& what) {
    const double now = seconds_now();
    std::string line = "[" + std::to_string(++started_) + "/" + std::to_string(total_) + "] " + what;
    if (started_ > 3) {
        const double left = (now - begin_) / (started_ - 1) * (total_ - started_ + 1);
        line +=
            ", about " + (left < 90 ? format_digits(left, 1) + " s" : format_digits(left / 60, 2) + " min") + " left";
    }
    if (terminal_) {
        const std::size_t room = static_cast<std::size_t>(terminal_width() - 1);
        if (line.size() > room) line.resize(room);
        std::fprintf(stderr, "\r\033[K%s", line.c_str());
        shown_ = true;
    } else if (now - last_line_ >= 10) {
        std::fprintf(stderr, "%s\n", line.c_str());
        last_line_ = now;
    }
    std::fflush(stderr);
}

void Progress::clear() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
    shown_ = false;
    std::fflush(stderr);
}

}  // namespace bench
