// The arrays of a row: the same random numbers for ours and for what it is held against, in device memory and on the host.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "buffer.hpp"
#include "cases.hpp"
#include "session.hpp"

namespace bench::cuda {

// What the first and the last token's rows are, of an array on the device.
std::vector<float> two_rows(const Session& session, const void* data, fastffn::DType dtype, std::int64_t tokens,
                            std::int64_t columns);

// The largest difference, a share of the largest number; NaN where there is one.
double difference(const std::vector<float>& wanted, const std::vector<float>& found);

// Sets of weights in one piece of memory.
struct Copies {
    std::shared_ptr<DeviceBuffer> memory;
    std::int64_t stride = 0;
    const std::byte* at(int variant) const { return static_cast<std::byte*>(memory->data()) + variant * stride; }
};
Copies make_copies(const Session& session, std::int64_t bytes, int variants);
// `variants` sets of the first.
void repeat(const Session& session, std::int64_t bytes, int variants, Copies* copies);

// Enough sets that three L2 caches of other weights were read since each was used; one for calls of many tokens.
int variants_for(const Session& session, const Case& row, std::int64_t bytes);

// One matrix of a case, or `count`, as plain numbers. Random, since zeros run faster; 2:4 where the format is.
Buffer plain_weights(const Case& row, fastffn::DType dtype, std::int64_t count, std::int64_t out, std::int64_t in,
                     std::uint64_t seed);

// The two factors of a matrix with this seed have these.
constexpr std::uint64_t inner_seed(std::uint64_t seed) { return 2 * seed; }
constexpr std::uint64_t outer_seed(std::uint64_t seed) { return 2 * seed + 1; }

inline fastffn::PackedView cpu_view(const Buffer& packed) { return {packed.data(), packed.bytes()}; }

// Weights packed for the device, `variants` times; and for the CPU when it is asked. With a rank: pairs of factors.
class Weights {
  public:
    Weights(const Session& session, const Case& row, std::int64_t count, std::int64_t out, std::int64_t in,
            std::uint64_t seed);
    std::int64_t bytes() const { return bytes_ - static_cast<std::int64_t>(sizeof header_); }
    void repeat(const Session& session, int variants) { cuda::repeat(session, bytes_, variants, &copies_); }
    fastffn::PackedView packed(int variant) const { return {copies_.at(variant), bytes_, &header_}; }
    fastffn::PackedView on_cpu() const { return cpu_view(cpu_); }

  private:
    Buffer cpu_;
    std::int64_t bytes_ = 0;
    fastffn::PackedHeader header_ = {};
    Copies copies_;
};

// Rows of x on both sides, and y on the device.
struct Rows {
    Buffer x;
    DeviceBuffer device_x, device_y;
    fastffn::DType dtype;
    std::int64_t tokens, in, out;

    Rows(const Session& session, fastffn::DType dtype, std::int64_t tokens, std::int64_t in, std::int64_t out);
    double bytes() const { return static_cast<double>(x.bytes() + device_y.bytes()); }
    fastffn::TensorView x_view() const { return {device_x.data(), dtype, {tokens, in}}; }
    fastffn::TensorView y_view() const { return {device_y.data(), dtype, {tokens, out}}; }
    // The first and the last token through a function of the CPU library, beside what the device made of them.
    using CpuCall = std::function<void(fastffn::Context&, const fastffn::TensorView& x, const fastffn::TensorView& y)>;
    double error(const Session& session, const CpuCall& cpu) const;
};

}  // namespace bench::cuda
