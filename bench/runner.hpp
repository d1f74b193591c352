// Runner: holds the arrays of one problem and times calls of it, in this process.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "fastffn/fastffn.hpp"
#include "options.hpp"
#include "trees.hpp"

namespace bench {

struct Prepared {
    std::string kernel;                // that the call ran, such as "bf16/amx"
    std::int64_t weight_bytes = 0;     // packed, headers included; moe: of the experts that one call uses
    std::int64_t stack_bytes = 0;      // moe: of all experts
    std::int64_t workspace_bytes = 0;  // that one call took beyond its arguments
};

// Something that can be prepared for a problem and then timed in short bursts, so that several can take turns.
class Contender {
  public:
    virtual ~Contender() = default;
    // Throws std::runtime_error with the library's message when the problem cannot run.
    virtual Prepared prepare(const Problem& problem) = 0;
    // Seconds per call, one number per sample; samples span about `seconds` in all, and there is at least one.
    virtual std::vector<double> burst(double seconds) = 0;
    // Process that does the work, for telling its load from other programs'; 0: this one.
    virtual int process() const { return 0; }
};

class Runner : public Contender {
  public:
    explicit Runner(const Options& options) : options_(options) {}
    Prepared prepare(const Problem& problem) override;
    std::vector<double> burst(double seconds) override;

  private:
    struct WeightSet {
        fastffn::PackedView up, gate, down;
    };
    // One format's weights of one shape: one copy when hot, and enough to fill cold_bytes when cold.
    struct Weights {
        std::string key;
        Buffer memory;
        std::vector<WeightSet> copies;
        std::int64_t bytes = 0;  // of one copy
    };

    void make_weights(const Problem& problem);
    void make_routings(const Problem& problem);
    void make_gates(const Problem& problem);
    void call_moe();
    void make_source(fastffn::Format format, std::int64_t rows, std::int64_t columns, std::uint64_t seed);
    void call();

    Options options_;
    std::unique_ptr<Trees> trees_;
    Weights weights_;  // those of the last problem; rows that share weights follow each other
    Buffer source_;    // an f32 matrix, before packing
    Buffer x_, y_, bias_, packed_;
    Problem problem_;
    std::unique_ptr<fastffn::Context> context_;
    // moe: ids and weights of some calls, one after another, and the experts that all those calls name, counted per call.
    Buffer ids_, pick_weights_;
    Buffer gates_;  // hybrid: biases of the gate
    fastffn::TensorView gates_view_;
    std::int64_t routings_ = 0, next_routing_ = 0;
    double active_experts_ = 0;  // per call, on average
    fastffn::TensorView x_view_, y_view_, source_view_, bias_up_, bias_down_;
    std::size_t next_copy_ = 0;
    double expected_ = 0;  // seconds per call
};

}  // namespace bench
