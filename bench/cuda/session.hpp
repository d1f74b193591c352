// The device part of fastffn-bench, opened: its table as classes that throw.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "cuda/device.hpp"
#include "fastffn/cuda.hpp"

namespace bench::cuda {

class Session;

class DeviceBuffer {
  public:
    DeviceBuffer() = default;
    DeviceBuffer(const Session& session, std::int64_t bytes);
    ~DeviceBuffer();
    DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
    void* data() const { return data_; }
    std::int64_t bytes() const { return bytes_; }

  private:
    const Module* module_ = nullptr;
    void* data_ = nullptr;
    std::int64_t bytes_ = 0;
};

// What a function launches, to be run and timed again and again.
class Recording {
  public:
    // `launch` gets the stream and throws what goes wrong.
    Recording(const Session& session, std::function<void(void* stream)> launch);
    ~Recording();
    Recording(Recording&& other) = delete;
    double seconds(int times = 1);  // that the device took for all of them
    bool is_graph() const { return is_graph_; }

  private:
    static std::int32_t call(void* self, void* stream);
    void check(std::int32_t status, const ModuleError& error);

    const Module& module_;
    std::function<void(void*)> launch_;
    std::exception_ptr thrown_;
    void* recording_ = nullptr;
    bool is_graph_ = false;
};

// A product of another library, w [out, in] as it stores it.
class LibraryProduct {
  public:
    LibraryProduct(const Session& session, Library library, const ProductShape& shape, const void* w, const void* x,
                   void* y);
    ~LibraryProduct();
    LibraryProduct(LibraryProduct&& other) = delete;
    std::int64_t weight_bytes() const { return weight_bytes_; }
    std::int64_t memory_bytes() const { return memory_bytes_; }
    void encode(const void* w, void* to) const;
    void multiply(const void* encoded, const void* x, void* y, void* stream) const;

  private:
    const Module& module_;
    void* product_ = nullptr;
    std::int64_t weight_bytes_ = 0, memory_bytes_ = 0;
};

struct LibraryState {
    bool found = false;
    std::string text;  // path and version, or why not
};

class Session {
  public:
    // Opens the plugin's device and the libraries; `places` as Module::load takes them. Throws std::runtime_error with the reason
    // where there is no CUDA, no device part, or none of this version.
    Session(int device, const std::string& places);

    const Module& module() const { return *module_; }
    const DeviceFacts& facts() const { return facts_; }
    const LibraryState& library(Library library) const { return libraries_[static_cast<int>(library)]; }
    int device() const { return device_; }
    void* stream() const { return stream_; }

    void copy(void* to, const void* from, std::int64_t bytes) const;
    void copy_on(void* stream, void* to, const void* from, std::int64_t bytes) const;
    void fill(void* to, Element element, std::int64_t count, std::uint64_t seed) const;

  private:
    int device_;
    const Module* module_ = nullptr;
    DeviceFacts facts_ = {};
    void* stream_ = nullptr;
    LibraryState libraries_[2];
};

}  // namespace bench::cuda
