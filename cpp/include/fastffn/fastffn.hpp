// Everything: include this one.
#pragma once

#include "fastffn/codes.hpp"         // codes and scales of quantised weights
#include "fastffn/context.hpp"       // threads and workspace
#include "fastffn/cpu.hpp"           // instruction sets
#include "fastffn/cuda.hpp"          // whether CUDA can be used, and why not
#include "fastffn/fff.hpp"           // trees: fff, fff_route
#include "fastffn/ffn.hpp"           // linear, ffn
#include "fastffn/hadamard.hpp"      // hadamard, quantize
#include "fastffn/lowrank.hpp"       // pairs of factors as one weight
#include "fastffn/moe.hpp"           // mixture of experts
#include "fastffn/pack_options.hpp"  // what formats let the caller of pack choose
#include "fastffn/packed.hpp"        // formats: pack, unpack, inspect
#include "fastffn/route.hpp"         // routers of a mixture of experts
#include "fastffn/sparse24.hpp"      // 2:4 masks and checks of plain weights
#include "fastffn/status.hpp"        // errors
#include "fastffn/tensor.hpp"        // dtypes and array views
#include "fastffn/version.hpp"       // version numbers
