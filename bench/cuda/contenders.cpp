#include "contenders.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "buffer.hpp"
#include "numbers.hpp"

namespace bench::cuda {

namespace {

using fastffn::DType;
using fastffn::PackedView;
using fastffn::TensorView;

// What the first and the last token's rows are, of an array on the device.
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

// Sets of weights in one piece of memory.
struct Copies {
    std::shared_ptr<DeviceBuffer> memory;
    std::int64_t stride = 0;
    const std::byte* at(int variant) const { return static_cast<std::byte*>(memory->data()) + variant * stride; }
};

// Enough sets that three L2 caches of other weights were read since each was used; one for calls of many tokens.
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

// The first set into all others.
void spread(const Session& session, const Copies& copies, std::int64_t bytes, int variants) {
    for (int variant = 1; variant < variants; ++variant)
        session.copy(const_cast<std::byte*>(copies.at(variant)), copies.at(0), bytes);
}

// One matrix of a case, as plain numbers: the same for ours and for what it is held against. Random, since zeros run faster.
Buffer plain_weights(const Case& row, DType dtype, std::int64_t count, std::int64_t out, std::int64_t in,
                     std::uint64_t seed) {
    Buffer plain(count * out * in * fastffn::dtype_bytes(dtype));
    fill_random(plain.data(), count * out * in, dtype, 1.7f / std::sqrt(static_cast<float>(in)), seed);
    if (row.format.format == fastffn::Format::sparse24) keep_two_of_four(plain.data(), dtype, count * out * in);
    return plain;
}

PackedView cpu_view(const Buffer& packed) { return {packed.data(), packed.bytes()}; }

// Weights packed for the device, `variants` times; and for the CPU when it is asked. With a rank: pairs of factors.
class Weights {
  public:
    Weights(const Session& session, const Case& row, std::int64_t count, std::int64_t out, std::int64_t in,
            std::uint64_t seed)
        : row_(row), count_(count), out_(out), in_(in), seed_(seed) {
        const Buffer cpu = on_cpu();
        fastffn::device_packed_bytes(cpu_view(cpu), &bytes_).value();
        Buffer packed(bytes_);
        fastffn::pack_for_device(cpu_view(cpu), packed.data(), bytes_).value();
        std::memcpy(&header_, packed.data(), sizeof header_);
        copies_ = make_copies(session, bytes_, 1);
        session.copy(copies_.memory->data(), packed.data(), bytes_);
    }
    std::int64_t bytes() const { return bytes_ - static_cast<std::int64_t>(sizeof header_); }
    void repeat(const Session& session, int variants) {
        const Copies first = std::move(copies_);
        copies_ = make_copies(session, bytes_, variants);
        session.copy(copies_.memory->data(), first.memory->data(), bytes_);
        spread(session, copies_, bytes_, variants);
    }
    PackedView packed(int variant) const { return {copies_.at(variant), bytes_, &header_}; }
    Buffer on_cpu() const {
        std::int64_t bytes = 0;
        if (row_.rank) {
            // As Chain::add_product makes them.
            const Buffer u = plain_weights(row_, row_.dtype, 1, row_.rank, in_, 2 * seed_),
                         v = plain_weights(row_, row_.dtype, 1, out_, row_.rank, 2 * seed_ + 1);
            const TensorView u_view(u.data(), row_.dtype, {row_.rank, in_}),
                v_view(v.data(), row_.dtype, {out_, row_.rank});
            fastffn::packed_factors_bytes(u_view, v_view, row_.format.format, &bytes).value();
            Buffer packed(bytes);
            fastffn::pack_factors(u_view, v_view, row_.format.format, packed.data(), bytes).value();
            return packed;
        }
        const Buffer plain = plain_weights(row_, row_.dtype, count_, out_, in_, seed_);
        const TensorView w = count_ == 1 ? TensorView(plain.data(), row_.dtype, {out_, in_})
                                         : TensorView(plain.data(), row_.dtype, {count_, out_, in_});
        fastffn::packed_bytes(w, row_.format.format, row_.format.options, &bytes).value();
        Buffer packed(bytes);
        fastffn::pack(w, row_.format.format, row_.format.options, packed.data(), bytes).value();
        return packed;
    }

  private:
    Case row_;
    std::int64_t count_, out_, in_, bytes_ = 0;
    std::uint64_t seed_;
    fastffn::PackedHeader header_ = {};
    Copies copies_;
};

// Rows of x on both sides, and y on the device.
struct Rows {
    Buffer x;
    DeviceBuffer device_x, device_y;
    DType dtype;
    std::int64_t tokens, in, out;

    Rows(const Session& session, DType dtype_, std::int64_t tokens_, std::int64_t in_, std::int64_t out_)
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
    double bytes() const { return static_cast<double>(x.bytes() + device_y.bytes()); }
    TensorView x_view() const { return {device_x.data(), dtype, {tokens, in}}; }
    TensorView y_view() const { return {device_y.data(), dtype, {tokens, out}}; }
    // The first and the last token through a function of the CPU library, beside what the device made of them.
    double error(const Session& session,
                 const std::function<void(fastffn::Context&, const TensorView&, const TensorView&)>& cpu) const {
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
};

Element numbers_of(const Packing& format) {
    switch (format.format) {
        case fastffn::Format::int8:
        case fastffn::Format::ternary:
        case fastffn::Format::int4: return Element::i8;
        case fastffn::Format::sparse24: return format.dense() == fastffn::Format::int8 ? Element::i8 : Element::bf16;
        default: return Element::bf16;
    }
}

Contender make_linear(const Session& session, const Case& row) {
    auto weights = std::make_shared<Weights>(session, row, 1, row.out, row.in, 1);
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.out);
    Contender contender;
    contender.variants = variants_for(session, row, weights->bytes());
    weights->repeat(session, contender.variants);
    contender.bytes = static_cast<double>(weights->bytes()) + rows->bytes();
    contender.operations = 2.0 * static_cast<double>(row.tokens * row.in * row.out);
    contender.call = [=, &session](int variant, void* stream) {
        fastffn::cuda_linear(session.call_on(stream), rows->x_view(), weights->packed(variant), nullptr, rows->y_view())
            .value();
    };
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            const Buffer w = weights->on_cpu();
            fastffn::linear(context, x, cpu_view(w), nullptr, y).value();
        });
    };
    return contender;
}

Contender make_ffn(const Session& session, const Case& row) {
    auto up = std::make_shared<Weights>(session, row, 1, row.hidden, row.in, 1);
    auto down = std::make_shared<Weights>(session, row, 1, row.in, row.hidden, 2);
    std::shared_ptr<Weights> gate;
    if (row.gated) gate = std::make_shared<Weights>(session, row, 1, row.hidden, row.in, 3);
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.in);
    const std::int64_t bytes = up->bytes() + down->bytes() + (gate ? gate->bytes() : 0);
    Contender contender;
    contender.variants = variants_for(session, row, bytes);
    for (Weights* weights : {up.get(), down.get(), gate.get()})
        if (weights) weights->repeat(session, contender.variants);
    contender.bytes = static_cast<double>(bytes) + rows->bytes();
    const std::int64_t matrix = row.rank ? row.rank * (row.in + row.hidden) : row.in * row.hidden;
    contender.operations = 2.0 * static_cast<double>(row.tokens * matrix * (gate ? 3 : 2));
    const fastffn::Activation activation = gate ? fastffn::Activation::silu : fastffn::Activation::gelu;
    contender.call = [=, &session](int variant, void* stream) {
        fastffn::FfnWeights weights;
        weights.w_up = up->packed(variant);
        weights.w_down = down->packed(variant);
        if (gate) weights.w_gate = gate->packed(variant);
        weights.activation = activation;
        fastffn::cuda_ffn(session.call_on(stream), rows->x_view(), weights, rows->y_view()).value();
    };
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            const Buffer cpu_up = up->on_cpu(), cpu_down = down->on_cpu(), cpu_gate = gate ? gate->on_cpu() : Buffer();
            fastffn::FfnWeights weights;
            weights.w_up = cpu_view(cpu_up);
            weights.w_down = cpu_view(cpu_down);
            if (gate) weights.w_gate = cpu_view(cpu_gate);
            weights.activation = activation;
            fastffn::ffn(context, x, weights, y).value();
        });
    };
    return contender;
}

Contender make_copy(const Session& session, const Case& row) {
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.in);
    Contender contender;
    contender.bytes = rows->bytes();
    contender.call = [=, &session](int, void* stream) {
        session.copy_on(stream, rows->device_y.data(), rows->device_x.data(), rows->x.bytes());
    };
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context&, const TensorView& x, const TensorView& y) {
            std::memcpy(y.data, x.data, static_cast<std::size_t>(2 * rows->in * fastffn::dtype_bytes(rows->dtype)));
        });
    };
    return contender;
}

DType dtype_of(Element element) {
    const DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i32};
    return dtypes[static_cast<int>(element)];
}

// Products of a library, one after another, with what is between them in memory: what a layer is without fusing. Activations are
// left out, in the rival's favour.
class Chain {
  public:
    Chain(const Session& session, Library library, Element element, const Case& row)
        : session_(session), library_(library), element_(element), row_(row) {
        const bool integers = element == Element::i8;
        y_dtype_ = integers ? DType::i32 : dtype_of(element);
        const std::int64_t out = row.kind == Kind::linear ? row.out : row.in;
        x_ = Buffer(row.tokens * row.in * element_bytes());
        fill_random(x_.data(), row.tokens * row.in, dtype_of(element), 1.7f, 7);
        add_buffer(row.in);
        add_buffer(out, fastffn::dtype_bytes(y_dtype_));
        session.copy(buffers_[0].data(), x_.data(), x_.bytes());
        if (row.kind == Kind::linear) {
            add_step(0, 1, row.in, row.out, 1);
        } else {
            if (integers) throw std::runtime_error("layers in 8 bits have no rival: their roundings are no library's");
            const int hidden = add_buffer(row.hidden), inner = row.rank ? add_buffer(row.rank) : -1;
            if (row.gated) add_product(0, inner, add_buffer(row.hidden), row.in, row.hidden, 3);
            add_product(0, inner, hidden, row.in, row.hidden, 1);
            add_product(hidden, inner, 1, row.hidden, row.in, 2);
        }
        std::int64_t bytes = 0;
        for (const Step& step : steps_) bytes += step.product->weight_bytes();
        weight_bytes_ = bytes;
        variants_ = variants_for(session, row, bytes);
        for (Step& step : steps_) {
            const Copies first = step.encoded;
            step.encoded = make_copies(session, step.product->weight_bytes(), variants_);
            session.copy(step.encoded.memory->data(), first.memory->data(), step.product->weight_bytes());
            spread(session, step.encoded, step.product->weight_bytes(), variants_);
        }
    }
    void call(int variant, void* stream) const {
        for (const Step& step : steps_)
            step.product->multiply(step.encoded.at(variant), buffers_[static_cast<std::size_t>(step.from)].data(),
                                   buffers_[static_cast<std::size_t>(step.to)].data(), stream);
    }
    int variants() const { return variants_; }
    double bytes() const { return static_cast<double>(weight_bytes_ + buffers_[0].bytes() + buffers_[1].bytes()); }
    double operations() const {
        double count = 0;
        for (const Step& step : steps_) count += 2.0 * static_cast<double>(row_.tokens * step.in * step.out);
        return count;
    }
    double memory_bytes() const {
        double bytes = 0;
        for (std::size_t i = 2; i < buffers_.size(); ++i) bytes += static_cast<double>(buffers_[i].bytes());
        return bytes;
    }
    // The first product's first and last token beside sums in double, at some columns: its strides and types are right.
    double error() const {
        const Step& step = steps_.front();
        // Again: a later product may have used the same memory.
        step.product->multiply(step.encoded.at(0), buffers_[static_cast<std::size_t>(step.from)].data(),
                               buffers_[static_cast<std::size_t>(step.to)].data(), session_.stream());
        const Buffer w = plain_weights(row_, dtype_of(element_), 1, step.out, step.in, step.seed);
        const std::vector<float> rows =
            two_rows(session_, buffers_[static_cast<std::size_t>(step.to)].data(), y_dtype_, row_.tokens, step.out);
        std::vector<float> wanted, found;
        for (std::int64_t which : {0, 1}) {
            const std::int64_t token = which ? row_.tokens - 1 : 0;
            for (std::int64_t i = 0; i < 32; ++i) {
                const std::int64_t column = i * (step.out - 1) / 31;
                double sum = 0;
                for (std::int64_t k = 0; k < step.in; ++k)
                    sum += static_cast<double>(read_number(x_.data(), dtype_of(element_), token * step.in + k)) *
                           static_cast<double>(read_number(w.data(), dtype_of(element_), column * step.in + k));
                wanted.push_back(static_cast<float>(sum));
                found.push_back(rows[static_cast<std::size_t>(which * step.out + column)]);
            }
        }
        return difference(wanted, found);
    }

  private:
    struct Step {
        int from, to;
        std::int64_t in, out;
        std::uint64_t seed;
        std::shared_ptr<LibraryProduct> product;
        Copies encoded;
    };
    std::int64_t element_bytes() const { return fastffn::dtype_bytes(dtype_of(element_)); }
    int add_buffer(std::int64_t columns, std::int64_t bytes_each = 0) {
        buffers_.emplace_back(session_, row_.tokens * columns * (bytes_each ? bytes_each : element_bytes()));
        return static_cast<int>(buffers_.size()) - 1;
    }
    void add_product(int from, int inner, int to, std::int64_t in, std::int64_t out, std::uint64_t seed) {
        if (inner < 0) return add_step(from, to, in, out, seed);
        add_step(from, inner, in, row_.rank, 2 * seed);
        add_step(inner, to, row_.rank, out, 2 * seed + 1);
    }
    void add_step(int from, int to, std::int64_t in, std::int64_t out, std::uint64_t seed) {
        const Buffer plain = plain_weights(row_, dtype_of(element_), 1, out, in, seed);
        const DeviceBuffer w(session_, plain.bytes());
        session_.copy(w.data(), plain.data(), plain.bytes());
        Step step{from, to, in, out, seed, nullptr, {}};
        step.product = std::make_shared<LibraryProduct>(
            session_, library_, ProductShape{element_, row_.tokens, out, in}, w.data(),
            buffers_[static_cast<std::size_t>(from)].data(), buffers_[static_cast<std::size_t>(to)].data());
        step.encoded = make_copies(session_, step.product->weight_bytes(), 1);
        step.product->encode(w.data(), step.encoded.memory->data());
        steps_.push_back(std::move(step));
    }

    const Session& session_;
    Library library_;
    Element element_;
    Case row_;
    DType y_dtype_;
    Buffer x_;
    std::vector<DeviceBuffer> buffers_;  // x, y, and what is between products
    std::vector<Step> steps_;
    std::int64_t weight_bytes_ = 0;
    int variants_ = 1;
};

Contender make_library(const Session& session, const Case& row, Library library, Element element) {
    const LibraryState& state = session.library(library);
    if (!state.found) throw std::runtime_error(state.text);
    auto chain = std::make_shared<Chain>(session, library, element, row);
    Contender contender;
    contender.variants = chain->variants();
    contender.bytes = chain->bytes();
    contender.operations = chain->operations();
    contender.memory_bytes = chain->memory_bytes();
    contender.call = [chain](int variant, void* stream) { chain->call(variant, stream); };
    contender.error = [chain] { return chain->error(); };
    return contender;
}

}  // namespace

Contender make_ours(const Session& session, const Case& row) {
    Contender contender;
    if (row.kind == Kind::linear) contender = make_linear(session, row);
    else if (row.kind == Kind::ffn) contender = make_ffn(session, row);
    else throw std::runtime_error(std::string(kind_name(row.kind)) + " has no device row yet");
    contender.name = "fastffn " + row.format.name();
    contender.numbers = numbers_of(row.format);
    return contender;
}

Contender make_rival(const Session& session, const Case& row, const Rival& rival) {
    Contender contender;
    if (rival.what == Rival::What::ours) {
        Case other = row;
        other.format = rival.format;
        return make_ours(session, other);
    }
    if (rival.what == Rival::What::copy) contender = make_copy(session, row);
    else
        contender = make_library(
            session, row, rival.what == Rival::What::cublaslt ? Library::cublaslt : Library::cusparselt, rival.element);
    contender.name = rival.name();
    contender.numbers = rival.element;
    return contender;
}

}  // namespace bench::cuda
