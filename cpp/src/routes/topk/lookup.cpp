// Routes without scores: the hash table, capacity, and what a route loads its experts with.
#include <cstring>

#include "routes/topk/checks.hpp"

namespace fastffn {

namespace {

Status fail(const char* operation, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + text};
}

std::int64_t integer(const TensorView& array, std::int64_t index) {
    if (array.dtype == DType::i32) return static_cast<const std::int32_t*>(array.data)[index];
    return static_cast<const std::int64_t*>(array.data)[index];
}

Status check_integers(const char* operation, const char* name, const TensorView& array) {
    if (array.dtype != DType::i32 && array.dtype != DType::i64)
        return fail(operation, std::string(name) + " has dtype " + dtype_name(array.dtype) + ", expected i32 or i64");
    return check_plain(operation, name, array, array.dtype);
}

}  // namespace

Status check_hash(const TensorView& tokens, const TensorView& table, const TensorView& ids, const TensorView& weights) {
    constexpr const char* operation = "route_hash";
    if (Status status = check_integers(operation, "tokens", tokens); !status.ok()) return status;
    if (Status status = check_integers(operation, "table", table); !status.ok()) return status;
    if (table.ndim != 2 || table.shape[1] < 1)
        return fail(operation, "table has shape " + table.shape_string() + ", expected (vocabulary, k)");
    if (tokens.ndim >= max_dims)
        return fail(operation, "tokens has " + std::to_string(tokens.ndim) + " dimensions, expected at most 7");
    if (Status status = check_route(operation, tokens, "tokens", tokens.ndim, table.shape[1], ids, weights);
        !status.ok())
        return status;
    if (Status status = check_apart(operation, tokens, "tokens", ids, weights); !status.ok()) return status;
    return check_apart(operation, table, "table", ids, weights);
}

Status route_hash(const TensorView& tokens, const TensorView& table, const TensorView& ids, const TensorView& weights) {
    constexpr const char* operation = "route_hash";
    if (Status status = check_hash(tokens, table, ids, weights); !status.ok()) return status;
    const std::int64_t vocabulary = table.shape[0], k = table.shape[1], count = tokens.size();
    for (std::int64_t t = 0; t < count; ++t) {
        const std::int64_t token = integer(tokens, t);
        if (token < 0 || token >= vocabulary)
            return fail(operation, "tokens has " + std::to_string(token) + " at position " + std::to_string(t) +
                                       ", expected 0 to " + std::to_string(vocabulary - 1) + " from table " +
                                       table.shape_string());
        for (std::int64_t j = 0; j < k; ++j) {
            const std::int64_t id = integer(table, token * k + j);
            if (id < -1 || id > INT32_MAX)
                return fail(operation, "table has " + std::to_string(id) + " at (" + std::to_string(token) + ", " +
                                           std::to_string(j) + "), expected -1 or an expert");
        }
    }
    auto* id_data = static_cast<std::int32_t*>(ids.data);
    auto* weight_data = static_cast<float*>(weights.data);
    for (std::int64_t t = 0; t < count; ++t)
        for (std::int64_t j = 0; j < k; ++j) {
            const std::int64_t id = integer(table, integer(tokens, t) * k + j);
            id_data[t * k + j] = static_cast<std::int32_t>(id);
            weight_data[t * k + j] = id < 0 ? 0.0f : 1.0f;
        }
    return {};
}

Status check_capacity(const TensorView& ids, const TensorView& weights, std::int64_t experts, std::int64_t capacity) {
    constexpr const char* operation = "limit_capacity";
    constexpr std::int64_t limit = std::int64_t{1} << 30;  // as of logits; and the counts' bytes stay far from overflow
    if (experts < 1 || experts > limit)
        return fail(operation, "num_experts is " + std::to_string(experts) + ", expected 1 to 2^30");
    if (capacity < 0) return fail(operation, "capacity is " + std::to_string(capacity) + ", expected 0 or more");
    if (ids.ndim < 1) return fail(operation, "ids has shape (), expected (..., k)");
    return check_route(operation, ids, "ids", ids.ndim - 1, ids.shape[ids.ndim - 1], ids, weights);
}

Status limit_capacity(Context& context, const TensorView& ids, const TensorView& weights, std::int64_t experts,
                      std::int64_t capacity) {
    constexpr const char* operation = "limit_capacity";
    if (Status status = check_capacity(ids, weights, experts, capacity); !status.ok()) return status;
    const std::int64_t k = ids.shape[ids.ndim - 1];
    auto* id_data = static_cast<std::int32_t*>(ids.data);
    auto* weight_data = static_cast<float*>(weights.data);
    const std::int64_t slots = ids.size(), tokens = k ? slots / k : 0;
    for (std::int64_t i = 0; i < slots; ++i)
        if (id_data[i] < -1 || id_data[i] >= experts)
            return fail(operation, "ids has " + std::to_string(id_data[i]) + " at position " + std::to_string(i) +
                                       ", expected -1 to " + std::to_string(experts - 1));
    auto* counts = reinterpret_cast<std::int64_t*>(context.workspace(8 * experts));
    if (!counts)
        return {StatusCode::out_of_memory,
                std::string(operation) + ": no memory for a workspace of " + std::to_string(8 * experts) + " bytes"};
    std::memset(counts, 0, static_cast<std::size_t>(8 * experts));
    for (std::int64_t j = 0; j < k; ++j)
        for (std::int64_t t = 0; t < tokens; ++t) {
            std::int32_t& id = id_data[t * k + j];
            if (id < 0 || counts[id]++ < capacity) continue;
            id = -1;
            weight_data[t * k + j] = 0;
        }
    return {};
}

Status check_load(const TensorView& ids, const TensorView& counts) {
    constexpr const char* operation = "expert_load";
    if (Status status = check_plain(operation, "ids", ids, DType::i32); !status.ok()) return status;
    if (Status status = check_plain(operation, "counts", counts, DType::i64); !status.ok()) return status;
    if (counts.ndim != 1 || counts.shape[0] < 1)
        return fail(operation, "counts has shape " + counts.shape_string() + ", expected (num_experts,)");
    if (may_overlap(ids, counts)) return fail(operation, "ids and counts share a range of memory");
    return {};
}

Status expert_load(const TensorView& ids, const TensorView& counts) {
    constexpr const char* operation = "expert_load";
    if (Status status = check_load(ids, counts); !status.ok()) return status;
    const auto* id_data = static_cast<const std::int32_t*>(ids.data);
    auto* count_data = static_cast<std::int64_t*>(counts.data);
    const std::int64_t slots = ids.size(), experts = counts.shape[0];
    for (std::int64_t i = 0; i < slots; ++i)
        if (id_data[i] < -1 || id_data[i] >= experts)
            return fail(operation, "ids has " + std::to_string(id_data[i]) + " at position " + std::to_string(i) +
                                       ", expected -1 to " + std::to_string(experts - 1));
    std::memset(count_data, 0, static_cast<std::size_t>(8 * experts));
    for (std::int64_t i = 0; i < slots; ++i)
        if (id_data[i] >= 0) ++count_data[id_data[i]];
    return {};
}

}  // namespace fastffn
