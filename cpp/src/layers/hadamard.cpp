// hadamard and quantize on arrays: checks, and rows over threads.
#include "fastffn/hadamard.hpp"

#include <cstring>

#include "core/cpu.hpp"
#include "core/elementwise.hpp"
#include "core/hadamard.hpp"
#include "core/hadamard_modes.hpp"
#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "formats/codes/layout.hpp"
#include "formats/format.hpp"
#include "layers/hadamard.hpp"

namespace fastffn {

namespace {

// Bytes of x that a task takes: some ten microseconds. Below, one thread is faster than waking a second.
constexpr std::int64_t task_bytes = 64 << 10;

int resolve_threads(int threads) { return usable_threads(threads > 0 ? threads : default_threads()); }

// Rows of x in tasks of nearly equal size.
struct Tasks {
    std::int64_t rows, rows_per_task, count;
    int threads;

    Tasks(const RowsView& x, std::int64_t most_rows, int wanted_threads) : rows(x.rows) {
        rows_per_task = task_bytes / (x.cols * 4 + 1);
        if (rows_per_task > most_rows) rows_per_task = most_rows;
        if (rows_per_task < 1) rows_per_task = 1;
        count = divide_up(rows, rows_per_task);
        threads = count < 2 ? 1 : count < wanted_threads ? static_cast<int>(count) : wanted_threads;
    }
    std::int64_t first(std::int64_t task) const { return task * rows_per_task; }
    std::int64_t end(std::int64_t task) const {
        return first(task) + rows_per_task < rows ? first(task) + rows_per_task : rows;
    }
};

Status check_environment() {
    if (Status status = check_isa(); !status.ok()) return status;
    return check_threading();
}

Status invalid(const std::string& text) { return {StatusCode::invalid_argument, text}; }

bool same_array(const TensorView& a, const TensorView& b) {
    bool same = a.data == b.data && a.dtype == b.dtype && a.ndim == b.ndim;
    for (int i = 0; same && i < a.ndim; ++i) same = a.shape[i] == 1 || a.strides[i] == b.strides[i];
    return same;
}

// ---- hadamard ----

}  // namespace

Status open_hadamard(const TensorView& x, const HadamardOptions& options, const TensorView* y,
                     HadamardRows* transform) {
    if (Status status = check_environment(); !status.ok()) return status;
    if (Status status = view_rows("hadamard", "x", x, &transform->x); !status.ok()) return status;
    if (static_cast<int>(options.mode) >= hadamard_mode_count)
        return invalid("hadamard: mode number " + std::to_string(static_cast<int>(options.mode)) + " is not known");
    if (transform->x.cols == 0)
        return invalid("hadamard: x has shape " + x.shape_string() + ", expected a last dimension of 1 or more");
    const std::string fault = hadamard_fault(options.mode, transform->x.cols, options.block, "x's last dimension");
    if (!fault.empty()) return invalid("hadamard: " + fault);
    hadamard_shape(options.mode, transform->x.cols, options.block, options.inverse, &transform->shape);
    if (!y) return {};
    if (Status status = view_rows("hadamard", "out", *y, &transform->y); !status.ok()) return status;
    bool same = y->ndim == x.ndim;
    for (int i = 0; same && i < x.ndim; ++i) same = y->shape[i] == x.shape[i];
    if (!same)
        return invalid("hadamard: out has shape " + y->shape_string() + ", expected " + x.shape_string() + " from x");
    if (rows_overlap(*y))
        return invalid("hadamard: out has shape " + y->shape_string() + " and strides " + y->stride_string() +
                       ": its rows share memory");
    if (!same_array(x, *y) && may_overlap(*y, x))
        return invalid("hadamard: out and x share a range of memory; give out memory of its own, or x itself");
    return {};
}

namespace {

// Bytes of a worker's row, which y cannot hold where it is no f32.
std::int64_t row_bytes(const HadamardRows& transform, DType dtype) {
    return dtype == DType::f32 ? 0 : round_up(transform.x.cols * 4, 64);
}

void run_hadamard(const HadamardRows& t, const Tasks& tasks, std::byte* workspace) {
    const HadamardKernel transform = hadamard_kernel(chosen_isa());
    const ElementwiseKernels& elementwise = elementwise_kernels(chosen_isa());
    const std::int64_t buffer_bytes = row_bytes(t, t.y.dtype);
    parallel_for(tasks.threads, tasks.count, [&](std::int64_t task, int worker) {
        for (std::int64_t row = tasks.first(task); row < tasks.end(task); ++row) {
            std::int64_t run = 0;
            const std::byte* src = t.x.row(row, 1, &run);
            std::byte* dst = t.y.row(row, 1, &run);
            auto* buffer = reinterpret_cast<float*>(buffer_bytes ? workspace + worker * buffer_bytes : dst);
            transform(src, t.x.dtype, buffer, t.shape);
            if (buffer_bytes)
                elementwise.store({buffer, t.x.cols, nullptr, 1, t.x.cols, dst, t.y.dtype, t.y.row_stride()});
        }
    });
}

// ---- quantize ----

struct Quantization {
    RowsView x;
    MatrixView matrix{};  // a ternary weight of x's width: what its prepare reads of one
    const FormatKernels* kernels = nullptr;

    std::int64_t worker_bytes(const Tasks& tasks) const {
        return round_up(kernels->prepared_bytes(tasks.rows_per_task, matrix), 64);
    }
};

}  // namespace

Status check_quantize(const TensorView& x, ActivationCodes kind, const TensorView* codes, const TensorView* scale,
                      RowsView* rows) {
    if (Status status = check_environment(); !status.ok()) return status;
    if (Status status = view_rows("quantize", "x", x, rows); !status.ok()) return status;
    if (static_cast<int>(kind) >= activation_codes_count)
        return invalid("quantize: kind of codes " + std::to_string(static_cast<int>(kind)) + " is not known");
    if (rows->cols < 1 || rows->cols > codes_depth_limit)
        return invalid("quantize: x has shape " + x.shape_string() + ", expected a last dimension of 1 to " +
                       std::to_string(codes_depth_limit));
    if (!codes) return {};
    const auto check = [&](const char* name, const TensorView& array, DType dtype, int dims) {
        bool same = array.ndim == dims;
        for (int i = 0; same && i < dims; ++i) same = array.shape[i] == x.shape[i];
        if (!same || array.dtype != dtype || !is_contiguous(array))
            return invalid(std::string("quantize: ") + name + " is " + dtype_name(array.dtype) + " of shape " +
                           array.shape_string() + ", expected contiguous " + dtype_name(dtype) + " of x's shape " +
                           x.shape_string() + (dims < x.ndim ? " without the last dimension" : ""));
        if (!array.data && rows->rows > 0) return invalid(std::string("quantize: ") + name + " has no data");
        if (may_overlap(array, x)) return invalid(std::string("quantize: ") + name + " and x share a range of memory");
        return Status();
    };
    if (Status status = check("codes", *codes, DType::i8, x.ndim); !status.ok()) return status;
    if (Status status = check("scale", *scale, DType::f32, x.ndim - 1); !status.ok()) return status;
    if (may_overlap(*codes, *scale)) return invalid("quantize: codes and scale share a range of memory");
    return {};
}

namespace {

Status open_quantize(const TensorView& x, ActivationCodes kind, const TensorView* codes, const TensorView* scale,
                     Quantization* q) {
    if (Status status = check_quantize(x, kind, codes, scale, &q->x); !status.ok()) return status;
    q->matrix.out_features = 1;
    q->matrix.in_features = q->x.cols;
    q->matrix.flags = (kind == ActivationCodes::int4 ? codes_act_int4 : codes_act_int8) << codes_act_shift;
    // Not AMX's, which prepare tiles: codes are taken from rows as CodesRows lays them out.
    q->kernels = &format_kernels(ternary_format, chosen_isa() < Isa::amx ? chosen_isa() : Isa::avx512bf16);
    return {};
}

void run_quantize(const Quantization& q, const Tasks& tasks, std::byte* codes, std::byte* scale, std::byte* workspace) {
    const std::int64_t cols = q.x.cols;
    parallel_for(tasks.threads, tasks.count, [&](std::int64_t task, int worker) {
        const std::int64_t first = tasks.first(task), rows = tasks.end(task) - first;
        std::byte* prepared = workspace + worker * q.worker_bytes(tasks);
        const CodesRows layout(rows, CodesLayout<2>(q.matrix).padded_depth, 1);
        for (std::int64_t row = 0; row < rows;) {
            std::int64_t run = 0;
            const std::byte* src = q.x.row(first + row, rows - row, &run);
            q.kernels->prepare({src, q.x.dtype, q.x.row_stride(), run, cols, row, 0, rows, cols, prepared, &q.matrix});
            row += run;
        }
        for (std::int64_t row = 0; row < rows; ++row)
            std::memcpy(codes + (first + row) * cols, prepared + row * layout.stride, static_cast<std::size_t>(cols));
        std::memcpy(scale + first * 4, prepared + layout.scales, static_cast<std::size_t>(rows * 4));
    });
}

constexpr std::int64_t most_quantised_rows = 16;

Status no_memory(const char* operation, std::int64_t bytes) {
    return {StatusCode::out_of_memory,
            std::string(operation) + ": no memory for a workspace of " + std::to_string(bytes) + " bytes"};
}

}  // namespace

Status hadamard(Context& context, const TensorView& x, const HadamardOptions& options, const TensorView& y) {
    HadamardRows transform{};
    if (Status status = open_hadamard(x, options, &y, &transform); !status.ok()) return status;
    if (transform.x.rows == 0) return {};
    const Tasks tasks(transform.x, INT64_MAX, resolve_threads(context.threads()));
    const std::int64_t bytes = row_bytes(transform, y.dtype) * tasks.threads;
    std::byte* workspace = context.workspace(bytes);
    if (bytes && !workspace) return no_memory("hadamard", bytes);
    run_hadamard(transform, tasks, workspace);
    return {};
}

Status hadamard_workspace(const TensorView& x, const HadamardOptions& options, int threads, std::int64_t* bytes) {
    HadamardRows transform{};
    if (Status status = open_hadamard(x, options, nullptr, &transform); !status.ok()) return status;
    const Tasks tasks(transform.x, INT64_MAX, resolve_threads(threads));
    *bytes = transform.x.rows ? row_bytes(transform, x.dtype) * tasks.threads : 0;
    return {};
}

Status quantize(Context& context, const TensorView& x, ActivationCodes kind, const TensorView& codes,
                const TensorView& scale) {
    Quantization q;
    if (Status status = open_quantize(x, kind, &codes, &scale, &q); !status.ok()) return status;
    if (q.x.rows == 0) return {};
    const Tasks tasks(q.x, most_quantised_rows, resolve_threads(context.threads()));
    const std::int64_t bytes = q.worker_bytes(tasks) * tasks.threads;
    std::byte* workspace = context.workspace(bytes);
    if (!workspace) return no_memory("quantize", bytes);
    run_quantize(q, tasks, static_cast<std::byte*>(codes.data), static_cast<std::byte*>(scale.data), workspace);
    return {};
}

Status quantize_workspace(const TensorView& x, ActivationCodes kind, int threads, std::int64_t* bytes) {
    Quantization q;
    if (Status status = open_quantize(x, kind, nullptr, nullptr, &q); !status.ok()) return status;
    const Tasks tasks(q.x, most_quantised_rows, resolve_threads(threads));
    *bytes = q.x.rows ? q.worker_bytes(tasks) * tasks.threads : 0;
    return {};
}

}  // namespace fastffn
