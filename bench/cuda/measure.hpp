// Ceilings of a device, and rows: contenders that take turns.
#pragma once

#include <string>
#include <vector>

#include "contenders.hpp"

namespace bench::cuda {

struct Options {
    int device = 0;
    std::string suite = "quick", only;  // only: rows whose name contains it
    std::vector<Case> cases;            // instead of a suite's
    bool tiny = false;
    double row_seconds = 0.2;  // for each contender of a row
    int rounds = 15;
    std::string json, places;
    bool list = false;
};

struct Times {
    double median = 0, p25 = 0, p75 = 0, minimum = 0;  // seconds per call
    int samples = 0;
};

// One contender's part of a row.
struct Result {
    std::string name;
    std::string problem;  // why there are no times, or why they count for nothing; else empty
    Times times;
    double bytes = 0, operations = 0, memory_bytes = -1;
    int variants = 1, calls = 1;  // sets of weights; calls in one recording
    bool is_graph = false;
    double error = 0;  // beside the CPU, a share of the largest result
    double ratio = 0;  // its time over ours, paired; above 1 ours is faster

    double bytes_per_second() const { return bytes / times.median; }
    double operations_per_second() const { return operations / times.median; }
};

struct Verdict {
    Bar bar;
    double measured = 0;
    bool known = false, met = false;  // not known: its row or its rival did not run, or a ceiling is missing
};

struct Row {
    Case asked;
    Result ours;
    std::vector<Result> rivals;
    double of_copy = -1, of_peak = -1;  // shares; -1: unknown, or nothing to share
    std::vector<Verdict> verdicts;
};

struct Ceiling {
    std::string what;     // "copy", "bf16", "int8"
    double rate = 0;      // bytes (read and written) or operations per second; 0: not measured
    std::string problem;  // why not
};

// What this device does in this run: a large copy, bytes read and bytes written both counted, and cuBLASLt's products of 8192³.
std::vector<Ceiling> measure_ceilings(const Session& session, const Options& options);
double ceiling(const std::vector<Ceiling>& ceilings, const std::string& what);

Row measure_row(const Session& session, const Case& row, const std::vector<Ceiling>& ceilings, const Options& options);

// Of measured numbers alone, so that tests reach it.
std::vector<Verdict> judge(const Row& row);

}  // namespace bench::cuda
