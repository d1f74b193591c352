// Whether CUDA can be used here, and why not. The kernels are in a plugin, libfastffn_cuda.so, which is looked for once:
//   FASTFFN_CUDA_PLUGIN, a path to it, or "off";  else the folder of this library, and "lib" beside it;  else the system's
//   search path for libraries.
// A process without the plugin, without a driver or without a device works as one on a CPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastffn {

struct CudaDevice {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 0;
    bool has_code = false;  // the plugin holds code for it
    std::int64_t memory_bytes = 0, l2_bytes = 0;
};

struct CudaReport {
    bool available = false;     // a plugin of this version, a driver and at least one device that it has code for
    std::string reason;         // why not; empty where available
    std::string path, version;  // of the plugin; empty where none was loaded
    std::string architectures;  // that it holds code for
    std::vector<CudaDevice> devices;
};

// Looks once; later calls return the same report.
const CudaReport& cuda_report();

}  // namespace fastffn
