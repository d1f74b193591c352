// Rows as a table and as JSON.
#pragma once

#include <string>
#include <vector>

#include "measure.hpp"

namespace bench::cuda {

std::string device_text(const Session& session, const std::vector<Ceiling>& ceilings);
std::string row_text(const Row& row);
std::string legend(const std::vector<Row>& rows);
std::string bar_text(const Bar& bar, const Case& row);  // "≥ 80 % of copy", "≥ 1.3x cuBLASLt bf16"
std::string to_json(const Session& session, const Options& options, const std::vector<Ceiling>& ceilings,
                    const std::vector<Row>& rows);

}  // namespace bench::cuda
