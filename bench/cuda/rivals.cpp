// What rows are held against.
#include "contenders.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "arrays.hpp"
#include "numbers.hpp"

namespace bench::cuda {

namespace {

using fastffn::DType;
using fastffn::TensorView;

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
            repeat(session, step.product->weight_bytes(), variants_, &step.encoded);
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
        add_step(from, inner, in, row_.rank, inner_seed(seed));
        add_step(inner, to, row_.rank, out, outer_seed(seed));
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
