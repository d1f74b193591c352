// moe against the sum of dense layers, for any number of threads, and what it says of wrong arguments.
//
// The dense layers run the same kernels, so what is left are sums in another order: where the hidden values are rounded
// (bf16) or quantised (int8) again, one of them may now and then land on the neighbouring value.
#include "check.hpp"
#include "moe_support.hpp"

using namespace support;

namespace {

double tolerance(const Kind& kind) {
    const std::string name = kind.name();
    const bool exact =
        name.find("f32") != std::string::npos || name == "f16" || name.find("'f16'") != std::string::npos;
    return exact ? 2e-6 : 2e-3;
}

void compare(const MoeProblem& problem, double limit, const std::string& what) {
    const std::vector<double> expected = problem.expected();
    std::vector<float> first, y;
    for (int threads : {1, 2, 3, 8}) {
        fastffn::Context context(threads);
        const Status status = problem.run(context, &y);
        CHECK(status.ok()) << what << ": " << status.message();
        if (threads == 1) {
            first = y;
            const double error = relative_error(y, expected);
            CHECK(error <= limit) << what << ": error " << error;
        }
        CHECK(std::memcmp(y.data(), first.data(), y.size() * 4) == 0)
            << what << ": bits with " << threads << " threads";
    }
}

std::string describe(const Kind& format, const MoeShape& s) {
    std::ostringstream out;
    out << format.name() << " tokens " << s.tokens << " picks " << s.picks << " experts " << s.experts << " "
        << s.d_model << "x" << s.d_ff << "x" << s.d_out << (s.gated ? " gated" : "") << (s.on_input ? " on input" : "");
    return out.str();
}

}  // namespace

TEST(equals_the_sum_of_dense_layers) {
    for (const Kind& format : all_kinds())
        for (const MoeShape& shape : {
                 MoeShape{1, 2, 5, 40, 24, 40},
                 MoeShape{2, 1, 1, 16, 16, 32, false},
                 MoeShape{7, 3, 7, 33, 50, 21},
                 MoeShape{33, 4, 6, 64, 96, 48, true, false},
                 MoeShape{100, 2, 3, 48, 1, 48, false, true},
                 MoeShape{300, 1, 2, 72, 130, 40, true, true, true},
                 MoeShape{64, 8, 8, 100, 70, 100, true, true, false, fastffn::Activation::swiglu_clamped},
             })
            for (DType dtype : float_dtypes) {
                MoeShape s = shape;
                s.dtype = dtype;
                compare(MoeProblem(format, s), tolerance(format), describe(format, s));
            }
}
int main(int argc, char** argv) { return check::run_all(argc, argv); }
