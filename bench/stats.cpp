#include "stats.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace bench {

double quantile(std::vector<double> samples, double q) {
    if (samples.empty()) return std::numeric_limits<double>::quiet_NaN();
    std::sort(samples.begin(), samples.end());
    const double at = q * static_cast<double>(samples.size() - 1);
    const std::size_t low = static_cast<std::size_t>(at), high = std::min(low + 1, samples.size() - 1);
    return samples[low] + (at - static_cast<double>(low)) * (samples[high] - samples[low]);
}

double median(const std::vector<double>& samples) { return quantile(samples, 0.5); }

double minimum(const std::vector<double>& samples) { return quantile(samples, 0.0); }

double paired_ratio(const std::vector<std::vector<double>>& ours, const std::vector<std::vector<double>>& other) {
    std::vector<double> ratios;
    for (std::size_t i = 0; i < std::min(ours.size(), other.size()); ++i) {
        if (!ours[i].empty() && !other[i].empty()) ratios.push_back(median(other[i]) / median(ours[i]));
    }
    return median(ratios);
}

std::vector<double> flatten(const std::vector<std::vector<double>>& rounds) {
    std::vector<double> all;
    for (const auto& round : rounds) all.insert(all.end(), round.begin(), round.end());
    return all;
}

std::vector<int> quiet_rounds(const std::vector<double>& other_cores, double limit, int at_least) {
    std::vector<int> order(other_cores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return other_cores[static_cast<std::size_t>(a)] < other_cores[static_cast<std::size_t>(b)];
    });
    std::size_t keep = 0;
    while (keep < order.size() &&
           (static_cast<int>(keep) < at_least || other_cores[static_cast<std::size_t>(order[keep])] <= limit)) {
        ++keep;
    }
    order.resize(keep);
    std::sort(order.begin(), order.end());
    return order;
}

}  // namespace bench
