// Tables of groups against a stable sort, and products of stacks against plain loops.
#include <algorithm>
#include <numeric>

#include "launch/dense.hpp"
#include "launch/group_tables.hpp"
#include "reference.hpp"
#include "support.hpp"

using namespace fastffn::cuda;
using fastffn::Activation;
using fastffn::DType;
using reference::Matrix;
using support::Device;

namespace {

// Tables in exactly the memory that they ask for.
struct Tables {
    std::vector<std::int64_t> ids;  // [tokens, slots]
    std::int64_t tokens, slots, groups;
    Device<unsigned char> memory;
    GroupTables tables;
    std::vector<TokenGroups> stacks;

    static std::int64_t count(std::int64_t tokens, std::int64_t slots, std::int64_t groups,
                              const std::vector<std::int64_t>& stack_groups, int tile_tokens) {
        Pieces pieces{nullptr};
        const GroupTables tables = take_group_tables(pieces, tokens, slots, groups);
        for (std::int64_t n : stack_groups) take_token_groups(pieces, tables, 0, n, tile_tokens);
        return pieces.used;
    }
    Tables(const std::vector<std::int64_t>& ids_, std::int64_t slots_, std::int64_t groups_,
           const std::vector<std::int64_t>& stack_groups, int tile_tokens)
        : ids(ids_),
          tokens(slots_ ? static_cast<std::int64_t>(ids_.size()) / slots_ : 1),
          slots(slots_),
          groups(groups_),
          memory(static_cast<std::size_t>(count(tokens, slots, groups, stack_groups, tile_tokens))) {
        Pieces pieces{memory.data()};
        tables = take_group_tables(pieces, tokens, slots, groups);
        std::int64_t first = 0;
        for (std::int64_t n : stack_groups) {
            stacks.push_back(take_token_groups(pieces, tables, first, n, tile_tokens));
            first += n;
        }
    }
    cudaError_t run(bool is_64, std::int64_t slot_stride, std::int64_t gap) {
        const std::int64_t token_stride = slots * slot_stride + gap;
        const auto size = static_cast<std::size_t>(tokens * token_stride);
        std::vector<std::int32_t> narrow(size, 3);
        std::vector<std::int64_t> wide(size, 3);
        for (std::int64_t i = 0; i < tokens * slots; i++) {
            const auto at = static_cast<std::size_t>(i / slots * token_stride + i % slots * slot_stride);
            wide[at] = ids[static_cast<std::size_t>(i)];
            narrow[at] = static_cast<std::int32_t>(ids[static_cast<std::size_t>(i)]);
        }
        const Device<std::int32_t> device_narrow(narrow);
        const Device<std::int64_t> device_wide(wide);
        const SlotIds source = {is_64 ? static_cast<const void*>(device_wide.data()) : device_narrow.data(), is_64,
                                token_stride, slot_stride};
        return launch_group_tables(source, tables, stacks.data(), static_cast<int>(stacks.size()), nullptr);
    }
    // The order a stable sort gives: slots by position.
    std::vector<std::int64_t> sorted() const {
        std::vector<std::int64_t> order;
        for (std::size_t i = 0; i < ids.size(); i++)
            if (ids[i] >= 0 && ids[i] < groups) order.push_back(static_cast<std::int64_t>(i));
        std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
            return ids[static_cast<std::size_t>(a)] < ids[static_cast<std::size_t>(b)];
        });
        return order;
    }
    std::string wrong() const {
        const auto bytes = memory.host();
        const auto read = [&](const std::int32_t* at) {
            std::int32_t value;
            std::memcpy(&value, bytes.data() + (reinterpret_cast<const unsigned char*>(at) - memory.data()), 4);
            return static_cast<std::int64_t>(value);
        };
        const auto order = sorted();
        std::vector<std::int64_t> offsets(static_cast<std::size_t>(groups + 1), 0);
        for (std::int64_t i : order) offsets[static_cast<std::size_t>(ids[static_cast<std::size_t>(i)] + 1)]++;
        std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
        for (std::int64_t g = 0; g <= groups; g++)
            if (read(tables.offsets + g) != offsets[static_cast<std::size_t>(g)]) return "offset " + std::to_string(g);
        std::vector<std::int64_t> places(ids.size(), -1);
        for (std::size_t p = 0; p < order.size(); p++) {
            places[static_cast<std::size_t>(order[p])] = static_cast<std::int64_t>(p);
            if (read(tables.rows + p) != order[p] / slots) return "row " + std::to_string(p);
        }
        for (std::size_t i = 0; i < places.size(); i++)
            if (read(tables.places + i) != places[i]) return "place " + std::to_string(i);
        std::int64_t first = 0;
        for (const TokenGroups& stack : stacks) {
            std::int64_t tile = 0;
            for (std::int64_t g = 0; g < stack.groups; g++)
                for (std::int64_t p = offsets[static_cast<std::size_t>(first + g)];
                     p < offsets[static_cast<std::size_t>(first + g + 1)]; p += stack.tile_tokens, tile++)
                    if (tile >= stack.max_tiles || read(stack.tiles + 2 * tile) != g ||
                        read(stack.tiles + 2 * tile + 1) != p)
                        return "tile " + std::to_string(tile);
            if (read(stack.tile_count) != tile) return "number of tiles";
            first += stack.groups;
        }
        return "";
    }
};

std::vector<std::int64_t> random_ids(std::int64_t count, std::int64_t groups, std::mt19937& random) {
    std::vector<std::int64_t> ids(static_cast<std::size_t>(count));
    // A few groups have most; some ids are none.
    for (auto& id : ids) {
        const auto draw = static_cast<std::int64_t>(random() % 16);
        id = draw == 0   ? -1
             : draw == 1 ? groups + 3
             : draw < 9  ? static_cast<std::int64_t>(random()) % groups
                         : draw % std::min<std::int64_t>(groups, 3);
    }
    return ids;
}

}  // namespace

TEST(tables_are_a_stable_sort) {
    std::mt19937 random(1);
    struct {
        std::int64_t tokens, slots, groups;
    } const sizes[] = {{1, 1, 1},   {1, 8, 64},    {16, 8, 60},    {33, 3, 7},   {256, 8, 300},
                       {257, 8, 5}, {1100, 4, 97}, {600, 5, 9000}, {4, 2, 9000}, {2100, 1, 8192}};
    for (const auto& s : sizes)
        for (int tile_tokens : {8, 128}) {
            const std::int64_t first = (s.groups + 1) / 2;
            Tables tables(
                random_ids(s.tokens * s.slots, s.groups, random), s.slots, s.groups,
                s.groups > 1 ? std::vector<std::int64_t>{first, s.groups - first} : std::vector<std::int64_t>{1},
                tile_tokens);
            const bool is_64 = tile_tokens == 8;
            CHECK(tables.run(is_64, is_64 ? 1 : 2, is_64 ? 0 : 5) == cudaSuccess) << emulator::last_failure();
            CHECK(tables.wrong().empty())
                << s.tokens << " x " << s.slots << " of " << s.groups << ": " << tables.wrong();
        }
}

TEST(tables_of_nothing) {
    for (std::int64_t groups : {std::int64_t{5}, shared_groups + 1}) {
        Tables none({}, 0, groups, {groups}, 8);
        CHECK(none.run(true, 1, 1) == cudaSuccess && none.wrong().empty()) << none.wrong();
        Tables empty({-1, -1, -1}, 3, groups, {groups}, 8);
        CHECK(empty.run(false, 1, 0) == cudaSuccess && empty.wrong().empty()) << empty.wrong();
    }
    Tables all(std::vector<std::int64_t>(700, 2), 7, 4, {4}, 16);
    CHECK(all.run(false, 1, 0) == cudaSuccess && all.wrong().empty()) << all.wrong();
    GroupTables tables = all.tables;
    tables.tokens = most_positions;
    CHECK(launch_group_tables({}, tables, nullptr, 0, nullptr) == cudaErrorInvalidValue);
    cudaGetLastError();
}

TEST(same_tables_under_every_schedule) {
    std::mt19937 random(3);
    const auto few = random_ids(96, 11, random), many = random_ids(2600, 50, random);
    for (unsigned seed = 0; seed < 8; seed++) {
        emulator::set_seed(seed);
        Tables small(few, 8, 11, {11}, 8), large(many, 2, 50, {20, 30}, 16);
        CHECK(small.run(false, 1, 0) == cudaSuccess && small.wrong().empty()) << seed << small.wrong();
        CHECK(large.run(false, 1, 0) == cudaSuccess && large.wrong().empty()) << seed << large.wrong();
    }
    emulator::set_seed(1);
}

namespace {

struct Problem {
    DType weights, rows;  // rows i8: int8 codes; f32 rows with f32 or f16 weights: launch_f32
    std::int64_t tokens, slots, groups, out, depth;
    bool is_gated, gathers;
    int tile_tokens;
    std::int64_t y_gap = 0;
    bool poisoned = false;
};

double worst(const Problem& p, unsigned seed) {
    std::mt19937 random(seed);
    Tables tables(random_ids(p.tokens * p.slots, p.groups, random), p.slots, p.groups, {p.groups}, p.tile_tokens);
    if (tables.run(false, 1, 0) != cudaSuccess) return 1e300;
    const std::int64_t positions = p.tokens * p.slots, x_rows = p.gathers ? p.tokens : positions;
    const float w_scale = 1 / std::sqrt(static_cast<float>(p.depth));
    Matrix x(x_rows, p.depth, p.rows, 16, random), w(p.groups * p.out, p.depth, p.weights, 0, random, w_scale),
        gate(p.groups * p.out, p.depth, p.weights, 0, random, w_scale);
    if (p.poisoned) reference::store(x.at(0, 0), p.rows, NAN);
    const bool is_int8 = p.rows == DType::i8;
    // Each matrix: rows, then scales, both whole lines.
    const std::int64_t scales_at = (p.out * w.row_bytes + 63) / 64 * 64,
                       matrix_bytes = scales_at + (p.out * 4 + 63) / 64 * 64;
    std::uniform_real_distribution<float> uniform(0.0005f, 0.002f);
    const auto stack = [&](const Matrix& m) {
        std::vector<unsigned char> bytes(static_cast<std::size_t>(p.groups * matrix_bytes), 0xFF);
        for (std::int64_t g = 0; g < p.groups; g++) {
            std::memcpy(bytes.data() + g * matrix_bytes, m.data.data() + g * p.out * m.stride,
                        static_cast<std::size_t>(p.out * m.stride));
            for (std::int64_t r = 0; r < p.out; r++)
                reference::store(bytes.data() + g * matrix_bytes + scales_at + r * 4, DType::f32, uniform(random));
        }
        return bytes;
    };
    const auto w_bytes = stack(w), gate_bytes = stack(gate);
    std::vector<float> x_scales(static_cast<std::size_t>(x_rows));
    for (float& s : x_scales) s = uniform(random);
    Matrix bias(p.groups, p.out, DType::f32, 0, random), gate_bias(p.groups, p.out, DType::bf16, 0, random);
    // Without the padding of rows.
    std::vector<float> bias_values;
    for (std::int64_t i = 0; i < p.groups * p.out; i++)
        bias_values.push_back(static_cast<float>(bias.value(i / p.out, i % p.out)));
    std::vector<unsigned char> gate_bias_values(static_cast<std::size_t>(p.groups * p.out * 2));
    for (std::int64_t i = 0; i < p.groups * p.out; i++)
        std::memcpy(gate_bias_values.data() + i * 2, gate_bias.at(i / p.out, i % p.out), 2);

    const Device<unsigned char> device_x(x.data), device_w(w_bytes), device_gate(gate_bytes),
        device_gate_bias(gate_bias_values);
    const Device<float> device_x_scales(x_scales), device_bias(bias_values);
    const std::int64_t y_stride = p.out + p.y_gap;
    const std::vector<float> untouched(static_cast<std::size_t>((positions - 1) * y_stride + p.out), -7);
    Device<float> y(untouched);
    DenseArgs args = {};
    args.x = device_x.data();
    args.x_stride = x.stride;
    args.w = device_w.data();
    args.w_gate = p.is_gated ? device_gate.data() : nullptr;
    args.row_bytes = p.rows == DType::f32 ? x.row_bytes : w.row_bytes;
    args.w_stride = w.row_bytes;
    args.matrix_bytes = matrix_bytes;
    if (is_int8) {
        args.x_scales = device_x_scales.data();
        args.w_scales = reinterpret_cast<const float*>(device_w.data() + scales_at);
        args.w_gate_scales = reinterpret_cast<const float*>(device_gate.data() + scales_at);
    }
    args.bias = device_bias.data();
    args.gate_bias = device_gate_bias.data();
    args.bias_dtype = DType::f32;
    args.gate_bias_dtype = DType::bf16;
    args.y = y.data();
    args.y_stride = y_stride;
    args.y_dtype = DType::f32;
    args.out_features = p.out;
    args.activation = p.is_gated ? Activation::silu : Activation::identity;
    TokenGroups groups = tables.stacks[0];
    if (!p.gathers) groups.rows = nullptr;
    const cudaError_t status = p.rows == DType::f32 ? launch_f32(p.weights, args, groups, nullptr)
                                                    : launch_dense(is_int8                ? Product::int8
                                                                   : p.rows == DType::f16 ? Product::f16
                                                                                          : Product::bf16,
                                                                   args, groups, nullptr);
    if (status != cudaSuccess) return 1e300;
    const auto found = y.host();
    const auto order = tables.sorted();
    double largest = 0;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(found.size()); i++) {
        const std::int64_t position = i / y_stride, column = i % y_stride;
        const double value = static_cast<double>(found[static_cast<std::size_t>(i)]);
        if (position >= static_cast<std::int64_t>(order.size()) || column >= p.out) {
            if (value != -7) return 1e299;
            continue;
        }
        const std::int64_t slot = order[static_cast<std::size_t>(position)],
                           group = tables.ids[static_cast<std::size_t>(slot)],
                           row = p.gathers ? slot / p.slots : position;
        const auto sum = [&](const Matrix& m, const std::vector<unsigned char>& bytes, const Matrix& b) {
            reference::Value v = reference::dot(x, row, m, group * p.out + column);
            if (is_int8)
                v = reference::scaled(
                    v, static_cast<double>(x_scales[static_cast<std::size_t>(row)]) *
                           reference::load(bytes.data() + group * matrix_bytes + scales_at + column * 4, DType::f32));
            return reference::plus(v, b.value(group, column));
        };
        const reference::Value up = sum(w, w_bytes, bias);
        const reference::Value expected =
            p.is_gated ? reference::through_gated(args.activation, sum(gate, gate_bytes, gate_bias), up) : up;
        if (std::isnan(expected.value) || std::isnan(value)) {
            if (std::isnan(expected.value) != std::isnan(value)) return 1e298;
            continue;
        }
        largest = std::fmax(largest, std::fabs(value - expected.value) /
                                         (expected.error + reference::rounding(DType::f32, expected.value)));
    }
    return largest;
}

}  // namespace

TEST(products_of_stacks) {
    unsigned seed = 0;
    for (auto [weights, rows] : {std::pair<DType, DType>{DType::bf16, DType::bf16},
                                 {DType::f16, DType::f16},
                                 {DType::i8, DType::i8},
                                 {DType::f32, DType::f32},
                                 {DType::f16, DType::f32}})
        for (int tile_tokens : {8, 16, 128})
            for (bool is_gated : {false, true}) {
                const Problem p = {weights,     rows,     tile_tokens == 8 ? 5 : 23,
                                   3,           4,        tile_tokens == 128 ? 70 : 19,
                                   90,          is_gated, is_gated,
                                   tile_tokens, 2,        seed % 3 == 0 && rows != DType::i8};
                const double error = worst(p, ++seed);
                CHECK(error <= 1) << "weights " << static_cast<int>(weights) << ", rows " << static_cast<int>(rows)
                                  << ", tiles of " << tile_tokens << (is_gated ? ", gated: " : ": ")
                                  << emulator::last_failure() << " " << error;
            }
}

TEST(more_tiles_than_blocks) {
    // Blocks go on to further tiles: there are six at once.
    const Problem p = {DType::bf16, DType::bf16, 170, 4, 5, 17 * 128 - 9, 20, false, true, 128, 0};
    const double error = worst(p, 5);
    CHECK(error <= 1) << emulator::last_failure() << " " << error;
}

TEST(products_of_stacks_on_hopper) {
    emulator::set_architecture(90);
    if (emulator::architecture() != 90) return check::skip("no device of compute capability 9.0");
    // Which kernel ran: Hopper's blocks have 384 threads.
    const auto is_hopper = [] {
#ifdef FASTFFN_ON_GPU
        return true;
#else
        return emulator::threads_of_last_block() == 384;
#endif
    };
    unsigned seed = 40;
    for (const DType type : {DType::bf16, DType::f16, DType::i8})
        for (const bool is_gated : {false, true})
            for (const bool gathers : {false, true}) {
                if (type != DType::bf16 && gathers != is_gated) continue;
                // Groups of none, few and more than one tile; weights of a tile and a rest, depth of five stages and a rest.
                const Problem p = {type,
                                   type,
                                   97,
                                   3,
                                   4,
                                   is_gated ? 230 : 210,
                                   type == DType::i8 ? 680 : 330,
                                   is_gated,
                                   gathers,
                                   128,
                                   2,
                                   type != DType::i8};
                const double error = worst(p, ++seed);
                CHECK(error <= 1) << static_cast<int>(type) << (is_gated ? ", gated: " : ": ")
                                  << emulator::last_failure() << " " << error;
                CHECK(is_hopper());
            }
    // One matrix; one stage, which ends before its copies are two stages old; narrow matrices, which other kernels take.
    const Problem one = {DType::bf16, DType::bf16, 50, 1, 1, 200, 30, false, true, 128, 0};
    CHECK(worst(one, ++seed) <= 1) << emulator::last_failure();
    CHECK(is_hopper());
    const Problem narrow = {DType::bf16, DType::bf16, 50, 1, 2, 70, 30, false, true, 128, 0};
    CHECK(worst(narrow, ++seed) <= 1) << emulator::last_failure();
#ifndef FASTFFN_ON_GPU
    CHECK(!is_hopper());
#endif
    for (unsigned schedule = 0; schedule < 3; schedule++) {
        emulator::set_seed(schedule);
        const Problem p = {DType::bf16, DType::bf16, 97, 2, 2, 128, 700, true, true, 128, 2};
        CHECK(worst(p, 60) <= 1) << emulator::last_failure();
    }
    emulator::set_seed(1);
    emulator::set_architecture(80);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
