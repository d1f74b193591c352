#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

namespace bench {

double fill_routings(const Problem& problem, std::int64_t calls, std::int32_t* ids) {
    const auto experts = static_cast<std::size_t>(problem.experts);
    std::mt19937_64 generator(1);
    // Experts by rank: the popular ones have no special place in memory.
    std::vector<std::int32_t> ranked(experts);
    std::iota(ranked.begin(), ranked.end(), 0);
    std::shuffle(ranked.begin(), ranked.end(), generator);
    std::vector<std::int32_t> order = ranked;
    std::vector<double> keys(experts);
    std::size_t dealt = 0;  // of a deck of experts
    std::uniform_real_distribution<double> uniform(0, 1);
    double used = 0;
    for (std::int64_t call = 0; call < calls; ++call) {
        std::vector<bool> seen(experts);
        for (std::int64_t token = 0; token < problem.tokens; ++token)
            for (std::int64_t pick = 0; pick < problem.picks; ++pick, ++ids) {
                if (pick == 0 && problem.routing == Routing::zipf) {
                    // The smallest of exponential times with rate 1 / rank: picks without replacement.
                    for (std::size_t rank = 0; rank < experts; ++rank)
                        keys[static_cast<std::size_t>(ranked[rank])] =
                            -std::log(1 - uniform(generator)) * static_cast<double>(rank + 1);
                    std::iota(order.begin(), order.end(), 0);
                    std::partial_sort(order.begin(), order.begin() + problem.picks, order.end(),
                                      [&](std::int32_t a, std::int32_t b) {
                                          return keys[static_cast<std::size_t>(a)] < keys[static_cast<std::size_t>(b)];
                                      });
                } else if (pick == 0 && problem.routing == Routing::uniform) {
                    // Calls of few tokens deal from one shuffled deck, so that an expert comes back as late as possible;
                    // with more tokens each has a deck of its own.
                    if (problem.tokens * problem.picks > problem.experts ||
                        dealt + static_cast<std::size_t>(problem.picks) > experts) {
                        std::shuffle(ranked.begin(), ranked.end(), generator);
                        dealt = 0;
                    }
                    std::copy_n(ranked.begin() + static_cast<std::ptrdiff_t>(dealt), problem.picks, order.begin());
                    dealt += static_cast<std::size_t>(problem.picks);
                }
                *ids = order[static_cast<std::size_t>(pick)];
                seen[static_cast<std::size_t>(*ids)] = true;
            }
        used += static_cast<double>(std::count(seen.begin(), seen.end(), true));
    }
    return used / static_cast<double>(calls);
}

}  // namespace bench
