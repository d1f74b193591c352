// lowrank: packing, unpacking and reading pairs of factors; the layout is in layout.hpp.
#include "formats/lowrank/layout.hpp"

#include <atomic>
#include <memory>
#include <new>

#include "core/convert.hpp"
#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "fastffn/context.hpp"
#include "fastffn/lowrank.hpp"
#include "formats/container.hpp"

namespace fastffn {

namespace {

std::int64_t factor_bytes(const FormatDefinition& factors, std::int64_t out_features, std::int64_t in_features) {
    PackedHeader header{};
    header.out_features = out_features;
    header.in_features = in_features;
    return factors.matrix_bytes(header);
}

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    const LowRankView view = lowrank_view(
        {nullptr, header.out_features, header.in_features, header.flags, {header.parameters[0], header.parameters[1]}});
    return view.outer_offset() + factor_bytes(*view.factors, view.out_features, view.rank);
}

// Headers for devices keep a hash of u beside it (cuda/src/layout/lowrank.hpp).
std::uint32_t factors_of(const PackedHeader& header) {
    return header.layout == device_rows_layout ? header.parameters[1] & 255 : header.parameters[1];
}

bool options_valid(const PackedHeader& header) noexcept {
    return (header.flags == 0 || header.layout == device_rows_layout) && header.parameters[0] >= 1 &&
           header.parameters[0] < lowrank_rank_limit && lowrank_factors(factors_of(header)) != nullptr;
}

// Two multiplicative hashes of different factors, 128 bits in all.
void fingerprint(const std::byte* data, std::int64_t bytes, std::byte* out) {
    std::uint64_t hashes[2] = {0x9e3779b97f4a7c15u, 0xc2b2ae3d27d4eb4fu};
    for (std::int64_t at = 0; at < bytes; at += 8) {  // a multiple of 64
        std::uint64_t word;
        std::memcpy(&word, data + at, 8);
        hashes[0] = (hashes[0] ^ word) * 0xff51afd7ed558ccdu;
        hashes[0] ^= hashes[0] >> 32;
        hashes[1] = (hashes[1] + word) * 0xc4ceb9fe1a85ec53u;
        hashes[1] ^= hashes[1] >> 29;
    }
    std::memcpy(out, hashes, 16);
}

// The product v · u, summed in f64.
bool unpack_all(const MatrixView& matrix, std::byte* dst, DType dtype) noexcept {
    const LowRankView view = lowrank_view(matrix);
    const auto rank = static_cast<std::size_t>(view.rank), in_features = static_cast<std::size_t>(view.in_features);
    const std::unique_ptr<float[]> inner(new (std::nothrow) float[rank * in_features]);
    if (!inner) return false;
    const int threads = usable_threads(default_threads());
    parallel_for(threads, view.rank, [&](std::int64_t r, int) {
        for (std::int64_t block = 0; block < view.blocks(); ++block)
            view.factors->unpack_row(view.inner(block), r,
                                     inner.get() + static_cast<std::size_t>(r) * in_features + block * lowrank_block);
    });
    std::atomic<bool> out_of_memory{false};
    const std::int64_t element = element_bytes(dtype);
    parallel_for(threads, divide_up(view.out_features, panel_columns), [&](std::int64_t panel, int) {
        const std::unique_ptr<float[]> outer(new (std::nothrow) float[rank]);
        const std::unique_ptr<double[]> sums(new (std::nothrow) double[in_features]);
        if (!outer || !sums) {
            out_of_memory = true;
            return;
        }
        const std::int64_t begin = panel * panel_columns, past = begin + panel_columns;
        for (std::int64_t row = begin; row < (past < view.out_features ? past : view.out_features); ++row) {
            view.factors->unpack_row(view.outer(), row, outer.get());
            for (std::size_t k = 0; k < in_features; ++k) sums[k] = 0;
            for (std::size_t r = 0; r < rank; ++r) {
                const double weight = outer[r];
                const float* from = inner.get() + r * in_features;
                for (std::size_t k = 0; k < in_features; ++k) sums[k] += weight * static_cast<double>(from[k]);
            }
            std::byte* to = dst + row * view.in_features * element;
            for (std::size_t k = 0; k < in_features; ++k)
                store_f32(to + static_cast<std::int64_t>(k) * element, dtype, static_cast<float>(sums[k]));
        }
    });
    return !out_of_memory;
}

KernelTable kernels_for(const PackedHeader& header) noexcept {
    return lowrank_kernels(static_cast<Format>(factors_of(header)));
}

constexpr Format factor_formats[] = {Format::bf16, Format::f16, Format::f32, Format::int8};

void read_lowrank_options(OptionReader& options, PackedHeader* header) {
    header->parameters[1] =
        static_cast<std::uint32_t>(factor_formats[options.choice("factors", {"bf16", "f16", "f32", "int8"}, 0)]);
}

PackOptions list_options(const PackedHeader& header) {
    return {{"factors", format_name(static_cast<Format>(factors_of(header)))},
            {"rank", static_cast<std::int64_t>(header.parameters[0])}};
}

Status fail(const std::string& text) { return {StatusCode::invalid_argument, "pack: " + text}; }

Status check_factor(const char* name, const TensorView& factor, const char* dims) {
    if (factor.ndim != 2 && factor.ndim != 3)
        return fail(std::string(name) + " has shape " + factor.shape_string() + ", expected " + dims +
                    " or a stack of those");
    if (factor.dtype != DType::f32 && factor.dtype != DType::f16 && factor.dtype != DType::bf16 &&
        factor.dtype != DType::f64)
        return fail(std::string(name) + " has dtype " + dtype_name(factor.dtype) + ", expected f32, f16, bf16 or f64");
    for (int i = 0; i < factor.ndim; ++i)
        if (factor.shape[i] < 1 || factor.shape[i] >= dimension_limit)
            return fail(std::string(name) + " has shape " + factor.shape_string() +
                        ", expected every dimension from 1 to 2^31 - 1");
    return {};
}

Status plan(const TensorView& u, const TensorView& v, Format factors, PackedHeader* header) {
    const FormatDefinition* format = lowrank_factors(static_cast<std::uint32_t>(factors));
    if (!format) return fail(std::string("factors is '") + format_name(factors) + "', expected f32, f16, bf16 or int8");
    if (Status status = check_factor("u", u, "[rank, in_features]"); !status.ok()) return status;
    if (Status status = check_factor("v", v, "[out_features, rank]"); !status.ok()) return status;
    const std::int64_t rank = u.shape[u.ndim - 2];
    if (v.ndim != u.ndim || v.shape[v.ndim - 1] != rank || (u.ndim == 3 && u.shape[0] != v.shape[0]))
        return fail("u has shape " + u.shape_string() + " and v " + v.shape_string() +
                    ", expected [rank, in_features] and [out_features, rank] of one rank, or stacks of equally many");
    if (rank >= lowrank_rank_limit)
        return fail("u has shape " + u.shape_string() + ", expected a rank below " +
                    std::to_string(lowrank_rank_limit));
    *header = new_header(Format::lowrank, u.ndim == 3 ? u.shape[0] : 1, v.shape[v.ndim - 2], u.shape[u.ndim - 1]);
    header->parameters[0] = static_cast<std::uint32_t>(rank);
    header->parameters[1] = static_cast<std::uint32_t>(factors);
    header->matrix_bytes = matrix_bytes(*header);
    if (header->out_features > bytes_limit / 16 / header->in_features ||
        header->matrix_bytes > bytes_limit / header->count)
        return fail("u has shape " + u.shape_string() + " and v " + v.shape_string() + ", too large");
    return {};
}

// Columns [col0, col0 + cols) of matrix `index` of a stack.
PlainMatrix part_of(const TensorView& stack, std::int64_t index, std::int64_t col0, std::int64_t cols) {
    const std::int64_t element = dtype_bytes(stack.dtype);
    const int rows_dim = stack.ndim - 2;
    const std::int64_t offset = (stack.ndim == 3 ? index * stack.strides[0] : 0) + col0 * stack.strides[rows_dim + 1];
    return {static_cast<const std::byte*>(stack.data) + offset * element,
            stack.dtype,
            stack.shape[rows_dim],
            cols,
            stack.strides[rows_dim] * element,
            stack.strides[rows_dim + 1] * element};
}

// One matrix in the factors' format, which takes no options.
Status pack_factor(const PlainMatrix& part, const FormatDefinition& factors, std::byte* payload,
                   const std::string& which) {
    PackedHeader header = new_header(factors.id, 1, part.out_features, part.in_features);
    header.matrix_bytes = factors.matrix_bytes(header);
    return factors.pack(part, {header, {}, 0, payload, which});
}

Status pack_pair(const TensorView& u, const TensorView& v, std::int64_t index, const LowRankView& view,
                 std::byte* payload, const std::string& which) {
    const auto at = [&](const MatrixView& matrix) { return payload + (matrix.payload - view.payload); };
    for (std::int64_t block = 0; block < view.blocks(); ++block) {
        const PlainMatrix part = part_of(u, index, block * lowrank_block, view.block_columns(block));
        if (Status status = pack_factor(part, *view.factors, at(view.inner(block)), which + ", u"); !status.ok())
            return status;
    }
    if (Status status = pack_factor(part_of(v, index, 0, view.rank), *view.factors, at(view.outer()), which + ", v");
        !status.ok())
        return status;
    lowrank_fingerprint(view, payload);
    return {};
}

}  // namespace

void lowrank_fingerprint(const LowRankView& view, std::byte* payload) {
    fingerprint(payload + lowrank_fingerprint_bytes, view.outer_offset() - lowrank_fingerprint_bytes, payload);
}

std::int64_t LowRankView::outer_offset() const {
    const std::int64_t whole = in_features / lowrank_block, rest = in_features % lowrank_block;
    return lowrank_fingerprint_bytes + whole * block_bytes + (rest ? factor_bytes(*factors, rank, rest) : 0);
}

const FormatDefinition* lowrank_factors(std::uint32_t format) noexcept {
    switch (format) {
        case static_cast<std::uint32_t>(Format::f32): return &f32_format;
        case static_cast<std::uint32_t>(Format::f16): return &f16_format;
        case static_cast<std::uint32_t>(Format::bf16): return &bf16_format;
        case static_cast<std::uint32_t>(Format::int8): return &int8_format;
        default: return nullptr;
    }
}

LowRankView lowrank_view(const MatrixView& matrix) noexcept {
    const FormatDefinition* factors = lowrank_factors(matrix.parameters[1]);
    const std::int64_t rank = matrix.parameters[0];
    return {factors,
            matrix.payload,
            matrix.out_features,
            matrix.in_features,
            rank,
            factor_bytes(*factors, rank, lowrank_block)};
}

Status packed_factors_bytes(const TensorView& u, const TensorView& v, Format factors, std::int64_t* bytes) {
    PackedHeader header;
    if (Status status = plan(u, v, factors, &header); !status.ok()) return status;
    *bytes = total_bytes(header);
    return {};
}

Status pack_factors(const TensorView& u, const TensorView& v, Format factors, void* out, std::int64_t out_bytes) {
    PackedHeader header;
    if (Status status = plan(u, v, factors, &header); !status.ok()) return status;
    if (!u.data || !v.data || !out) return fail("u, v and out must not be null");
    if (may_overlap(u, out, out_bytes) || may_overlap(v, out, out_bytes))
        return fail("out shares a range of memory with u or v; give out memory of its own");
    if (out_bytes != total_bytes(header))
        return fail("out has " + std::to_string(out_bytes) + " bytes, expected " + std::to_string(total_bytes(header)));
    auto* bytes = static_cast<std::byte*>(out);
    std::memset(bytes, 0, static_cast<std::size_t>(out_bytes));
    for (std::int64_t i = 0; i < header.count; ++i) {
        std::byte* payload = bytes + sizeof header + i * header.matrix_bytes;
        const LowRankView view = lowrank_view(
            {payload, header.out_features, header.in_features, 0, {header.parameters[0], header.parameters[1]}});
        const std::string which = header.count == 1 ? "pack" : "pack: matrix " + std::to_string(i);
        if (Status status = pack_pair(u, v, i, view, payload, which); !status.ok()) return status;
    }
    seal_header(header, bytes);
    return {};
}

Status inspect_factors(const PackedView& packed, LowRankInfo* info, const char* name) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "inspect", name, &matrix); !status.ok()) return status;
    if (matrix.format->id != Format::lowrank)
        return {StatusCode::invalid_argument,
                std::string("inspect: ") + name + " has the format " + matrix.format->name + ", expected lowrank"};
    *info = {matrix.header.parameters[0], static_cast<Format>(matrix.header.parameters[1])};
    return {};
}

const FormatDefinition lowrank_format = {
    Format::lowrank,
    "lowrank",
    matrix_bytes,
    nullptr,  // takes two matrices: pack_factors()
    nullptr,  // rows share their work: unpack_all
    {},
    options_valid,
    read_lowrank_options,
    list_options,
    kernels_for,
    unpack_all,
};

}  // namespace fastffn
