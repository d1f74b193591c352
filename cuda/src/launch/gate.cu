#include "launch/gate.hpp"

#include "kernels/gate.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

cudaError_t launch_gate(Activation activation, const DeviceRows& gate, const DeviceRows& up, const DeviceRows& y,
                        cudaStream_t stream) {
    if (gate.rows != y.rows || up.rows != y.rows || gate.cols != y.cols || up.cols != y.cols)
        return cudaErrorInvalidValue;
    if (y.rows == 0 || y.cols == 0) return cudaSuccess;
    const std::int64_t columns = (y.cols + gate_threads - 1) / gate_threads;
    const Grid grid = {dim3(static_cast<unsigned>(y.rows < 0x7fffffff ? y.rows : 0x7fffffff),
                            static_cast<unsigned>(columns < 65535 ? columns : 65535)),
                       dim3(gate_threads), 0, stream, "gate"};
    return launch(gate_kernel, grid, activation, gate, up, y);
}

}  // namespace fastffn::cuda
