// What the bench measures on a device: one case is one row, with what it is held against and what is asked of it.
#pragma once

#include <string>
#include <vector>

#include "cuda/device.hpp"
#include "options.hpp"

namespace bench::cuda {

enum class Kind {
    linear,    // x [tokens, in] · wᵀ
    ffn,       // in → hidden → in, gated or not
    moe,       // experts of in × hidden, `picks` per token
    fff,       // all-node tree of `depth` over in = out
    hadamard,  // rows of in
};
const char* kind_name(Kind kind);

// Held against: a library's product of the dense (or 2:4) weights, our own layer in another format, or a copy of the bytes.
struct Rival {
    enum class What { cublaslt, cusparselt, ours, copy } what = What::cublaslt;
    Element element = Element::bf16;  // of a library's product
    Packing format;                   // ours
    std::string name() const;
};

// What is asked of a row.
struct Bar {
    enum class Of {
        bandwidth,  // share of the measured copy bandwidth
        peak,       // share of the measured peak of the row's numbers
        speed,      // the rival's time over ours
        memory,     // share of the rival's temporary memory that is saved
    } of = Of::speed;
    double at_least = 0;
    int rival = -1;  // index in Case::rivals: speed, memory
};

struct Case {
    std::string part;  // of the suite: "decode", "prefill"
    Kind kind = Kind::linear;
    Packing format;
    std::int64_t tokens = 1, in = 0, out = 0, hidden = 0;
    bool gated = false;
    std::int64_t experts = 0, picks = 0, depth = 0;
    bool bitnet = false;  // ffn: relu² and a sub-norm
    fastffn::GateFirst gate_first = fastffn::GateFirst::never;
    fastffn::Hadamard hadamard = fastffn::Hadamard::pow2;
    std::int64_t rank = 0;                        // factors of `format` instead of whole matrices; 0: whole
    fastffn::DType dtype = fastffn::DType::bf16;  // of x and y
    std::vector<Rival> rivals;
    std::vector<Bar> bars;

    std::string name() const;  // "decode linear bf16 4096x14336"
    bool is_decode() const { return tokens <= 64; }
};

const std::vector<std::string>& suite_names();
// Throws std::invalid_argument for an unknown name. `tiny`: the same rows in sizes that an emulated device computes in a moment.
std::vector<Case> suite(const std::string& name, bool tiny);

}  // namespace bench::cuda
