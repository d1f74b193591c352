// Statistics of repeated timings.
#pragma once

#include <vector>

namespace bench {

// Linear interpolation between the two nearest order statistics (type 7 of Hyndman and Fan 1996, NumPy's default).
// `q` in [0, 1]; NaN for no samples.
double quantile(std::vector<double> samples, double q);
double median(const std::vector<double>& samples);
double minimum(const std::vector<double>& samples);

// Of two interleaved series, one vector of samples per round: the median over rounds of median(other) / median(ours).
// Slow drift of the machine hits both sides of one round alike and cancels. Above 1: ours is faster.
double paired_ratio(const std::vector<std::vector<double>>& ours, const std::vector<std::vector<double>>& other);

std::vector<double> flatten(const std::vector<std::vector<double>>& rounds);

// Which rounds to keep: those in which other programs used at most `limit` cores; the quietest `at_least` where fewer
// are that quiet. Indices in ascending order.
std::vector<int> quiet_rounds(const std::vector<double>& other_cores, double limit, int at_least);

}  // namespace bench
