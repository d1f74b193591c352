#include "arrays.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fastffn/fastffn.hpp"
#include "numbers.hpp"

namespace bench::cuda {

using fastffn::DType;
using fastffn::TensorView;

std::vector<float> two_rows(const Session& session, const void* data, DType dtype, std::int64_t tokens,
                            std::int64_t columns) {
    std::vector<float> rows;
    for (std::int64_t token : {std::int64_t{0}, tokens - 1}) {
        const std::int64_t bytes = columns * fastffn::dtype_bytes(dtype);
        std::vector<std::byte> row(static_cast<std::size_t>(bytes));
        session.copy(row.data(), static_cast<const std::byte*>(data) + token * bytes, bytes);
        for (std::int64_t i = 0; i < columns; ++i) rows.push_back(read_number(row.data(), dtype, i));
    }
    return rows;
}

double difference(const std::vector<float>& wanted, const std::vector<float>& found) {
    double largest = 0, apart = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        largest = std::max(largest, std::fabs(static_cast<double>(wanted[i])));
        const double difference = std::fabs(static_cast<double>(wanted[i]) - static_cast<double>(found[i]));
        if (std::isnan(difference)) return difference;
        apart = std::max(apart, difference);
    }
    return apart / largest;
}

int variants_for(const Session& session, const Case& row, std::int64_t bytes) {
    if (!row.is_decode()) return 1;
    if (session.facts().emulated) return 2;
    const std::int64_t wanted = (3 * session.facts().l2_bytes + bytes - 1) / bytes + 1;
    const std::int64_t most = std::max<std::int64_t>(1, session.facts().free_bytes / 4 / bytes);
    return static_cast<int>(std::clamp<std::int64_t>(std::min(wanted, most), 1, 512));
}

Copies make_copies(const Session& session, std::int64_t bytes, int variants) {
    Copies copies;
    copies.stride = (bytes + 255) / 256 * 256;
    copies.memory = std::make_shared<DeviceBuffer>(session, copies.stride * variants);
    return copies;
}

void repeat(const Session& session, std::int64_t bytes, int variants, Copies* copies) {
    const Copies first = std::move(*copies);
    *copies = make_copies(session, bytes, variants);
    for (int variant = 0; variant < variants; ++variant)
        session.copy(const_cast<std::byte*>(copies->at(variant)), first.at(0), bytes);
}

Buffer plain_weights(const Case& row, DType dtype, std::int64_t count, std::int64_t out, std::int64_t in,
                     std::uint64_t seed) {
    Buffer plain(count * out * in * fastffn::dtype_bytes(dtype));
    fill_random(plain.data(), count * out * in, dtype, 1.7f / std::sqrt(static_cast<float>(in)), seed);
    if (row.format.format == fastffn::Format::sparse24) keep_two_of_four(plain.data(), dtype, count * out * in);
    return plain;
}

namespace {

Buffer pack_on_cpu(const Case& row, std::int64_t count, std::int64_t out, std::int64_t in, std::uint64_t seed) {
    std::int64_t bytes = 0;
    if (row.rank) {
        const Buffer u = plain_weights(row, row.dtype, 1, row.rank, in, inner_seed(seed)),
                     v = plain_weights(row, row.dtype, 1, out, row.rank, outer_seed(seed));
        const TensorView u_view(u.data(), row.dtype, {row.rank, in}), v_view(v.data(), row.dtype, {out, row.rank});
        fastffn::packed_factors_bytes(u_view, v_view, row.format.format, &bytes).value();
        Buffer packed(bytes);
        fastffn::pack_factors(u_view, v_view, row.format.format, packed.data(), bytes).value();
        return packed;
    }
    const Buffer plain = plain_weights(row, row.dtype, count, out, in, seed);
    const TensorView w = count == 1 ? TensorView(plain.data(), row.dtype, {out, in})
                                    : TensorView(plain.data(), row.dtype, {count, out, in});
    fastffn::packed_bytes(w, row.format.format, row.format.options, &bytes).value();
    Buffer packed(bytes);
    fastffn::pack(w, row.format.format, row.format.options, packed.data(), bytes).value();
    return packed;
}

}  // namespace

Weights::Weights(const Session& session, const Case& row, std::int64_t count, std::int64_t out, std::int64_t in,
                 std::uint64_t seed)
    : cpu_(pack_on_cpu(row, count, out, in, seed)) {
    fastffn::device_packed_bytes(cpu_view(cpu_), &bytes_).value();
    Buffer packed(bytes_);
    fastffn::pack_for_device(cpu_view(cpu_), packed.data(), bytes_).value();
    std::memcpy(&header_, packed.data(), sizeof header_);
    copies_ = make_copies(session, bytes_, 1);
    session.copy(copies_.memory->data(), packed.data(), bytes_);
}

Rows::Rows(const Session& session, DType dtype_, std::int64_t tokens_, std::int64_t in_, std::int64_t out_)
    : x(tokens_ * in_ * fastffn::dtype_bytes(dtype_)),
      device_x(session, x.bytes()),
      device_y(session, tokens_ * out_ * fastffn::dtype_bytes(dtype_)),
      dtype(dtype_),
      tokens(tokens_),
      in(in_),
      out(out_) {
    fill_random(x.data(), tokens * in, dtype, 1.7f, 7);
    session.copy(device_x.data(), x.data(), x.bytes());
    // NaN, so that what nobody writes shows.
    Buffer poison(device_y.bytes());
    std::memset(poison.data(), 0xFF, static_cast<std::size_t>(poison.bytes()));
    session.copy(device_y.data(), poison.data(), poison.bytes());
}

double Rows::error(const Session& session, const CpuCall& cpu) const {
    const std::int64_t row_bytes = in * fastffn::dtype_bytes(dtype);
    Buffer two_x(2 * row_bytes), two_y(2 * out * fastffn::dtype_bytes(dtype));
    std::memcpy(two_x.data(), x.data(), static_cast<std::size_t>(row_bytes));
    std::memcpy(two_x.data() + row_bytes, x.data() + (tokens - 1) * row_bytes, static_cast<std::size_t>(row_bytes));
    fastffn::Context context;
    cpu(context, {two_x.data(), dtype, {2, in}}, {two_y.data(), dtype, {2, out}});
    std::vector<float> wanted;
    for (std::int64_t i = 0; i < 2 * out; ++i) wanted.push_back(read_number(two_y.data(), dtype, i));
    return difference(wanted, two_rows(session, device_y.data(), dtype, tokens, out));
}

}  // namespace bench::cuda
