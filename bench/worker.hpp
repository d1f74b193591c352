// The library reads FASTFFN_ISA once per process, so rows of another instruction set run in a worker: this program
// again, with FASTFFN_ISA set, answering over a pipe. Parent and workers take turns, so their times are interleaved
// too.
//
//   to the worker     problem OPTIONS…      burst SECONDS
//   from the worker   ready KERNEL WEIGHT_BYTES WORKSPACE_BYTES      times T T T …      error MESSAGE
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "runner.hpp"

namespace bench {

class Worker : public Contender {
  public:
    Worker(const std::string& isa, const Options& options);  // throws std::runtime_error
    ~Worker() override;
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;

    Prepared prepare(const Problem& problem) override;
    std::vector<double> burst(double seconds) override;
    int process() const override { return process_; }

  private:
    std::string ask(const std::string& line, const std::string& expected_word);

    Options options_;
    std::string isa_;
    int process_ = 0;
    std::FILE *to_ = nullptr, *from_ = nullptr;
};

// The worker's side: serves until its standard input ends; returns the exit status.
int serve();

}  // namespace bench
