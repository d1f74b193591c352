#include "load.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "team.hpp"

namespace bench {

namespace {

// User and system seconds of another process, from /proc/PID/stat; the name in it may hold spaces, so count from ")".
double process_seconds(int process, double tick) {
    const std::string path = "/proc/" + std::to_string(process) + "/stat";
    std::FILE* file = std::fopen(path.c_str(), "r");
    if (!file) return 0;
    char text[1024];
    const std::size_t size = std::fread(text, 1, sizeof text - 1, file);
    std::fclose(file);
    text[size] = 0;
    const std::string line(text);
    const std::size_t end = line.rfind(')');
    unsigned long long user = 0, system = 0;
    if (end == std::string::npos ||
        std::sscanf(line.c_str() + end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) !=
            2) {
        return 0;
    }
    return static_cast<double>(user + system) * tick;
}

}  // namespace

LoadMeter::Reading LoadMeter::read() const {
    Reading reading;
    reading.when = seconds_now();
    const double tick = 1.0 / static_cast<double>(std::max(sysconf(_SC_CLK_TCK), 1L));
    if (std::FILE* file = std::fopen("/proc/stat", "r")) {
        unsigned long long user = 0, nice = 0, system = 0, irq = 0, softirq = 0, steal = 0;
        if (std::fscanf(file, "cpu %llu %llu %llu %*u %*u %llu %llu %llu", &user, &nice, &system, &irq, &softirq,
                        &steal) == 6) {
            reading.busy = static_cast<double>(user + nice + system + irq + softirq + steal) * tick;
        }
        std::fclose(file);
    }
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    reading.ours = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    for (int process : processes_) reading.ours += process_seconds(process, tick);
    return reading;
}

void LoadMeter::start(const std::vector<int>& processes) {
    processes_ = processes;
    start_ = read();
}

double LoadMeter::other_cores() const {
    const Reading now = read();
    const double elapsed = now.when - start_.when;
    if (elapsed <= 0 || now.busy <= 0) return 0;
    return std::max(0.0, (now.busy - start_.busy - (now.ours - start_.ours)) / elapsed);
}

}  // namespace bench
