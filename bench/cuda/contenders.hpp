// Contenders: a case, or what it is held against, with its arrays in device memory, ready to be called.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cases.hpp"
#include "session.hpp"

namespace bench::cuda {

struct Contender {
    std::string name;
    double bytes = 0;                 // that a call must move: weights, x and y once each
    double operations = 0;            // 0: none to speak of
    Element numbers = Element::bf16;  // whose peak it is held against
    double memory_bytes = -1;         // temporary device memory of a call; -1: unknown
    // Sets of weights (or of picks) that calls take in turns, so that none is in the L2 cache when it is used.
    int variants = 1;
    std::function<void(int variant, void* stream)> call;
    // How far a call's result is from the same call on the CPU, or a product in double: a share of the largest result.
    std::function<double()> error;
    std::vector<std::shared_ptr<void>> keep;
};

// Throw std::runtime_error, with the library's message where a layer refuses.
Contender make_ours(const Session& session, const Case& row);
Contender make_rival(const Session& session, const Case& row, const Rival& rival);

// Larger differences than this are mistakes: the roundings of bf16, of activations to 8 bits, and of sums in another order.
constexpr double largest_error = 0.05;

}  // namespace bench::cuda
