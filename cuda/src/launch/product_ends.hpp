// What the arguments of every product have in common behind the sums: biases, activation, and where y goes.
#pragma once

#include "abi.hpp"
#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"

namespace fastffn::cuda {

template <class Args>
void set_ends(Args& args, const DeviceBias& bias, const DeviceBias& gate_bias, Activation activation,
              const DeviceRows& y) {
    args.bias = bias.data;
    args.gate_bias = gate_bias.data;
    args.bias_dtype = static_cast<DType>(bias.dtype);
    args.gate_bias_dtype = static_cast<DType>(gate_bias.dtype);
    args.y = y.data;
    args.y_stride = y.stride;
    args.y_dtype = static_cast<DType>(y.dtype);
    args.tokens = y.rows;
    args.activation = activation;
}

}  // namespace fastffn::cuda
