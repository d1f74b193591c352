// One row: a problem and its baseline, timed in turns, and set against the machine's roofs.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "machine.hpp"
#include "options.hpp"
#include "runner.hpp"

namespace bench {

struct Timing {
    double median = 0, minimum = 0, quarter = 0, three_quarters = 0;  // seconds per call
    int samples = 0;
};

struct Row {
    Problem problem;
    std::string error;  // empty: everything below holds
    Prepared prepared;
    Timing timing;
    int rounds = 0;
    double other_cores = 0;  // used by other programs during the rounds that count

    std::string bound;        // what limits it: "compute", "L2", "L3", "DRAM"; empty without a roof
    double roof_seconds = 0;  // the time of a call that reaches the roof
    double peak = 0;          // operations per second
    double bandwidth = 0;     // bytes per second
    double percent = 0;       // roof_seconds / median, in percent

    std::string baseline;  // such as "f32"; empty without one
    Timing baseline_timing;
    std::string baseline_kernel;
    double ratio = 0;  // baseline / ours, paired: above 1 we are faster

    double weight_rate() const;     // packed bytes per second; pack and unpack: bytes read and written
    double operation_rate() const;  // operations per second
};

// The kernel tag after the slash of "bf16/amx" as a fastffn::Isa; ref for what is unknown.
int isa_of_kernel(const std::string& kernel);
Numbers numbers_of(const Packing& packing);

class Comparison {
  public:
    Comparison(const Options& options, Machine* machine) : options_(options), machine_(machine) {}
    Row measure(const Problem& problem);

  private:
    enum Role { ours, baseline };
    Contender& contender(const std::string& isa, Role role);
    void set_roof(Row* row);

    const Options& options_;
    Machine* machine_;  // nullptr: no roofs
    std::map<std::pair<std::string, Role>, std::unique_ptr<Contender>> contenders_;
};

}  // namespace bench
