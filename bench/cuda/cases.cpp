#include "cases.hpp"

#include <algorithm>
#include <stdexcept>

namespace bench::cuda {

namespace {

using fastffn::Format;
using What = Rival::What;
using Of = Bar::Of;

const Packing bf16(Format::bf16), f16(Format::f16), int8(Format::int8), ternary(Format::ternary),
    int4(Format::int4, {{"group", 128}}), int4_bf16(Format::int4, {{"group", 128}, {"act", "bf16"}}),
    sparse_bf16(Format::sparse24), sparse_int8(Format::sparse24, {{"values", "int8"}});

Rival cublaslt(Element element) { return {What::cublaslt, element, {}}; }
Rival cusparselt(Element element) { return {What::cusparselt, element, {}}; }
Rival ours(const Packing& format) { return {What::ours, Element::bf16, format}; }
Rival memcpy_rival() { return {What::copy, Element::bf16, {}}; }

Bar bandwidth(double share) { return {Of::bandwidth, share, -1}; }
Bar peak(double share) { return {Of::peak, share, -1}; }
Bar speed(int rival, double times) { return {Of::speed, times, rival}; }
Bar memory(int rival, double saved) { return {Of::memory, saved, rival}; }

Case linear(const char* part, const Packing& format, std::int64_t tokens, std::int64_t in, std::int64_t out,
            std::vector<Rival> rivals, std::vector<Bar> bars) {
    Case row;
    row.part = part;
    row.format = format;
    row.tokens = tokens;
    row.in = in;
    row.out = out;
    row.rivals = std::move(rivals);
    row.bars = std::move(bars);
    if (format.format == Format::f16) row.dtype = fastffn::DType::f16;
    return row;
}

// One token: a product reads each weight once, and should do so nearly as fast as a copy moves bytes.
void add_decode(std::vector<Case>& cases) {
    // 13824×2560 is gate and up of BitNet's 2.4-billion model side by side, the shape of its published GPU times.
    const std::pair<std::int64_t, std::int64_t> shapes[] = {{2560, 13824}, {4096, 14336}, {8192, 28672}};
    for (const auto& [in, out] : shapes) {
        const auto add = [&, in = in, out = out](const Packing& format, std::vector<Rival> rivals,
                                                 std::vector<Bar> bars) {
            cases.push_back(linear("decode", format, 1, in, out, std::move(rivals), std::move(bars)));
        };
        const bool bitnet = in == 2560;
        add(bf16, {cublaslt(Element::bf16)}, {bandwidth(0.8)});
        add(int8, {cublaslt(Element::bf16), ours(bf16)}, {bandwidth(0.8)});
        add(int4, {cublaslt(Element::bf16), ours(bf16)}, {bandwidth(0.8)});
        if (bitnet) add(ternary, {cublaslt(Element::bf16), ours(bf16)}, {bandwidth(0.5), speed(0, 3.2), speed(1, 3.2)});
        else add(ternary, {cublaslt(Element::bf16), ours(bf16)}, {bandwidth(0.8)});
        if (!bitnet) {
            add(sparse_bf16, {cublaslt(Element::bf16), ours(bf16)}, {speed(0, 1.5), speed(1, 1.5)});
            add(sparse_int8, {ours(int8)}, {speed(0, 1.5)});
        }
    }
    // Small enough that a launch takes as long as the bytes: shown, nothing asked.
    for (const Packing& format : {bf16, int8, int4, ternary})
        cases.push_back(linear("decode", format, 1, 4096, 4096, {cublaslt(Element::bf16)}, {}));
    cases.push_back(linear("decode", int4_bf16, 1, 4096, 14336, {cublaslt(Element::bf16)}, {}));
    for (const Packing& format : {bf16, int8, int4, int4_bf16, ternary})
        cases.push_back(linear("decode", format, 16, 4096, 14336, {cublaslt(Element::bf16)}, {}));

    Case layer;
    layer.part = "decode";
    layer.kind = Kind::ffn;
    layer.gated = true;
    layer.in = 4096;
    layer.hidden = 14336;
    layer.rivals = {cublaslt(Element::bf16)};
    for (const Packing& format : {bf16, int8, int4}) {
        layer.format = format;
        cases.push_back(layer);
    }
}

Case olmoe(const char* part, std::int64_t tokens) {
    Case row;
    row.part = part;
    row.kind = Kind::moe;
    row.format = bf16;
    row.gated = true;
    row.in = 2048;
    row.hidden = 1024;
    row.experts = 64;
    row.picks = 8;
    row.tokens = tokens;
    return row;
}

void add_moe_decode(std::vector<Case>& cases) {
    for (std::int64_t tokens : {1, 4, 16}) {
        cases.push_back(olmoe("decode", tokens));
        if (tokens == 1) cases.back().bars = {bandwidth(0.4)};
    }
}

void add_prefill(std::vector<Case>& cases) {
    const auto add = [&](const Packing& format, std::int64_t tokens, std::int64_t in, std::int64_t out,
                         std::vector<Rival> rivals, std::vector<Bar> bars) {
        cases.push_back(linear("prefill", format, tokens, in, out, std::move(rivals), std::move(bars)));
    };
    for (const auto& [in, out] : {std::pair<std::int64_t, std::int64_t>{4096, 14336}, {8192, 8192}}) {
        add(bf16, 4096, in, out, {cublaslt(Element::bf16)}, {speed(0, 0.9)});
        add(f16, 4096, in, out, {cublaslt(Element::f16)}, {speed(0, 0.9)});
        add(int8, 4096, in, out, {cublaslt(Element::i8)}, {speed(0, 0.9)});
    }
    for (const Packing& format : {int4, int4_bf16, ternary})
        add(format, 4096, 4096, 14336, {cublaslt(Element::bf16), cublaslt(Element::i8)}, {});
    add(sparse_bf16, 8192, 8192, 8192, {cublaslt(Element::bf16), cusparselt(Element::bf16)},
        {speed(0, 1.3), speed(1, 1.0)});
    add(sparse_int8, 8192, 8192, 8192, {cublaslt(Element::i8), cusparselt(Element::i8)},
        {speed(0, 1.3), speed(1, 1.0)});

    Case layer;
    layer.part = "prefill";
    layer.kind = Kind::ffn;
    layer.gated = true;
    layer.in = 4096;
    layer.hidden = 14336;
    layer.tokens = 4096;
    layer.rivals = {cublaslt(Element::bf16)};
    for (const Packing& format : {bf16, int8}) {
        layer.format = format;
        cases.push_back(layer);
    }
}

void add_moe_prefill(std::vector<Case>& cases) {
    cases.push_back(olmoe("prefill", 4096));
    cases.back().bars = {peak(0.5)};
}

// FlashSVD's gated layer: batch 8 of 4096 tokens, 768 → 3072, rank 384.
void add_lowrank(std::vector<Case>& cases) {
    Case row;
    row.part = "prefill";
    row.kind = Kind::ffn;
    row.format = f16;
    row.dtype = fastffn::DType::f16;
    row.gated = true;
    row.in = 768;
    row.hidden = 3072;
    row.rank = 384;
    row.tokens = 8 * 4096;
    row.rivals = {cublaslt(Element::f16)};
    row.bars = {speed(0, 1.3), memory(0, 0.75)};
    cases.push_back(row);
    row.format = bf16;
    row.dtype = fastffn::DType::bf16;
    row.rivals = {cublaslt(Element::bf16)};
    cases.push_back(row);
}

// UltraFastBERT's 1x11: a tree of depth 11 in place of 768 → 3072 → 768.
void add_fff(std::vector<Case>& cases) {
    Case row;
    row.part = "prefill";
    row.kind = Kind::fff;
    row.format = bf16;
    row.in = 768;
    row.hidden = 3072;
    row.depth = 11;
    row.tokens = 16384;
    row.rivals = {cublaslt(Element::bf16)};
    row.bars = {speed(0, 2.0)};
    cases.push_back(row);
}

void add_hadamard(std::vector<Case>& cases) {
    using fastffn::Hadamard;
    const std::pair<std::int64_t, Hadamard> lengths[] = {
        {1024, Hadamard::pow2},  {4096, Hadamard::pow2}, {8192, Hadamard::pow2},  {16384, Hadamard::pow2},
        {6912, Hadamard::block}, {6912, Hadamard::kron}, {11008, Hadamard::kron}, {14336, Hadamard::kron}};
    for (const auto& [columns, mode] : lengths) {
        Case row;
        row.part = "prefill";
        row.kind = Kind::hadamard;
        row.in = columns;
        row.hadamard = mode;
        row.tokens = 16384;
        row.rivals = {memcpy_rival()};
        row.bars = {speed(0, 1 / 1.2)};
        cases.push_back(row);
    }
}

// The layer of BitNet's 2.4-billion model; about half of its gates are zero here, and gate first leaves those rows of w_up unread.
void add_bitnet(std::vector<Case>& cases) {
    for (const fastffn::GateFirst gate_first : {fastffn::GateFirst::never, fastffn::GateFirst::automatic}) {
        Case row;
        row.part = "decode";
        row.kind = Kind::ffn;
        row.format = ternary;
        row.gated = row.bitnet = true;
        row.gate_first = gate_first;
        row.in = 2560;
        row.hidden = 6912;
        row.rivals = {cublaslt(Element::bf16)};
        cases.push_back(row);
    }
}

// One row of every way through the program.
void add_quick(std::vector<Case>& cases) {
    cases.push_back(linear("decode", bf16, 1, 4096, 14336, {cublaslt(Element::bf16)}, {bandwidth(0.8)}));
    cases.push_back(linear("decode", ternary, 1, 2560, 13824, {cublaslt(Element::bf16), ours(bf16)}, {speed(0, 3.2)}));
    cases.push_back(linear("prefill", bf16, 4096, 4096, 4096, {cublaslt(Element::bf16)}, {speed(0, 0.9)}));
    cases.push_back(linear("prefill", int8, 4096, 4096, 4096, {cublaslt(Element::i8)}, {speed(0, 0.9)}));
}

const std::vector<std::pair<std::string, std::vector<void (*)(std::vector<Case>&)>>> suites = {
    {"quick", {add_quick}},
    {"decode", {add_decode, add_bitnet, add_moe_decode}},
    {"prefill", {add_prefill, add_moe_prefill, add_lowrank, add_fff, add_hadamard}},
    {"all", {add_decode, add_bitnet, add_moe_decode, add_prefill, add_moe_prefill, add_lowrank, add_fff, add_hadamard}},
};

const char* element_name(Element element) {
    const char* names[] = {"f32", "f16", "bf16", "int8", "int32"};
    return names[static_cast<int>(element)];
}

}  // namespace

const char* kind_name(Kind kind) {
    const char* names[] = {"linear", "ffn", "moe", "fff", "hadamard"};
    return names[static_cast<int>(kind)];
}

std::string Rival::name() const {
    switch (what) {
        case What::cublaslt: return std::string("cuBLASLt ") + element_name(element);
        case What::cusparselt: return std::string("cuSPARSELt ") + element_name(element);
        case What::ours: return "fastffn " + format.name();
        case What::copy: return "memcpy";
    }
    return "";
}

std::string Case::name() const {
    std::string text = part + " " + kind_name(kind) + " ";
    if (kind == Kind::hadamard)
        text += fastffn::dtype_name(dtype) + std::string(" ") + fastffn::hadamard_name(hadamard);
    else text += rank ? "lowrank:factors=" + format.name() + ":rank=" + std::to_string(rank) : format.name();
    text += " " + std::to_string(in);
    if (kind == Kind::linear) text += "x" + std::to_string(out);
    else if (kind == Kind::fff) text += " depth " + std::to_string(depth);
    else if (kind != Kind::hadamard) text += "x" + std::to_string(hidden);
    if (gated) text += " gated";
    if (bitnet) text += " relu2 sub-norm";
    if (gate_first == fastffn::GateFirst::automatic) text += " gate first";
    if (kind == Kind::moe) text += " " + std::to_string(picks) + " of " + std::to_string(experts);
    return text + ", tokens " + std::to_string(tokens);
}

const std::vector<std::string>& suite_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> list;
        for (const auto& entry : suites) list.push_back(entry.first);
        return list;
    }();
    return names;
}

std::vector<Case> suite(const std::string& name, bool tiny) {
    for (const auto& [known, parts] : suites) {
        if (known != name) continue;
        std::vector<Case> cases;
        for (const auto& add : parts) add(cases);
        if (!tiny) return cases;
        std::vector<Case> small;
        for (Case row : cases) {
            row.tokens = std::min<std::int64_t>(row.tokens, row.is_decode() ? 3 : 20);
            row.in = row.kind == Kind::hadamard ? (row.hadamard == fastffn::Hadamard::pow2 ? 128 : 192)
                                                : std::min<std::int64_t>(row.in, 128);
            row.out = std::min<std::int64_t>(row.out, 48);
            row.hidden = std::min<std::int64_t>(row.hidden, 64);
            row.experts = std::min<std::int64_t>(row.experts, 4);
            row.picks = std::min<std::int64_t>(row.picks, 2);
            row.depth = std::min<std::int64_t>(row.depth, 3);
            row.rank = std::min<std::int64_t>(row.rank, 16);
            // Shapes that differ no more are one row.
            if (std::none_of(small.begin(), small.end(), [&](const Case& other) { return other.name() == row.name(); }))
                small.push_back(row);
        }
        return small;
    }
    std::string names;
    for (const std::string& known : suite_names()) names += (names.empty() ? "" : ", ") + known;
    throw std::invalid_argument("--suite: expected " + names + " with --device cuda, found '" + name + "'");
}

}  // namespace bench::cuda
