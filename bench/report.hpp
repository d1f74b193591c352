// What the user reads: the machine's block, the table of rows, and the JSON file.
#pragma once

#include <string>
#include <vector>

#include "compare.hpp"
#include "machine.hpp"
#include "options.hpp"

namespace bench {

std::string build_text();        // version, commit, compiler
std::string environment_text();  // CPU, instruction sets, threads: the lines above the tables
std::string machine_text(const Machine& machine);

// Prints rows as they come, with a title line and the column heads wherever the layer changes.
class Table {
  public:
    explicit Table(const Options& options);
    std::string add(const Row& row);
    std::string legend() const;

  private:
    const Options& options_;
    std::string title_, baseline_;  // the baseline's name, as the column's head shows it
    int format_width_ = 6;
    bool any_noisy_ = false;
};

std::string to_json(const Options& options, const Machine* machine, const std::vector<Row>& rows);

}  // namespace bench
