// The driver's context that is current to a thread, which may be one that the caller made, or none yet.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

namespace fastffn::ptx {

class DriverContext {
  public:
    // What is current now. Nothing is known without a driver.
    static DriverContext current() {
        DriverContext context;
        context.is_known_ = functions().get && functions().set && functions().get(&context.context_) == CUDA_SUCCESS;
        return context;
    }
    bool is_known() const { return is_known_; }
    // Current again; none, if there was none.
    void restore() const {
        if (is_known_) functions().set(context_);
    }

  private:
    struct Functions {
        decltype(&cuCtxGetCurrent) get = nullptr;
        decltype(&cuCtxSetCurrent) set = nullptr;
    };
    // From the driver that is loaded, never linked: the library must load where there is none.
    template <class Function>
    static void find(const char* name, Function* function) {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
        const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t status = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
        if (status != cudaSuccess) cudaGetLastError();
        if (status == cudaSuccess && result == cudaDriverEntryPointSuccess)
            *function = reinterpret_cast<Function>(found);
    }
    static const Functions& functions() {
        static const Functions found = [] {
            Functions f;
            find("cuCtxGetCurrent", &f.get);
            find("cuCtxSetCurrent", &f.set);
            return f;
        }();
        return found;
    }
    CUcontext context_ = nullptr;
    bool is_known_ = false;
};

}  // namespace fastffn::ptx
