// torch tensors. The library neither links nor imports torch: this code runs once a caller has passed a tensor.
#pragma once

#include "arrays.hpp"

namespace fastffn::python {

// Exactly torch.Tensor or Parameter, through the exchange API. That API skips checks that __dlpack__ makes (gradients,
// lazy negation), so they are made here.
void read_torch(const Call& call, const char* name, py::handle object, Role role, const dlpack::ExchangeApi& exchange,
                Array* array);

// Subclasses, and torch before 2.10.
void read_torch_slow(const Call& call, const char* name, py::handle object, Role role, Array* array);

}  // namespace fastffn::python
