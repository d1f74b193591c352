// The binary interface of DLPack 1.x, declared from its published struct layouts (github.com/dmlc/dlpack).
// Only what fastffn reads or writes is named.
#pragma once

#include <cstdint>

namespace fastffn::dlpack {

constexpr std::uint32_t major_version = 1;
constexpr std::uint32_t minor_version = 3;

struct Version {
    std::uint32_t major, minor;
};

enum DeviceType : std::int32_t {
    device_cpu = 1,
    device_cuda = 2,
    device_cuda_host = 3,  // pinned
    device_rocm = 10,
    device_rocm_host = 11,  // pinned
    device_cuda_managed = 13,
};

struct Device {
    std::int32_t type;
    std::int32_t id;
};

enum TypeCode : std::uint8_t { code_int = 0, code_uint = 1, code_float = 2, code_bfloat = 4 };

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; NULL means row-major, legal before 1.2 only
    std::uint64_t byte_offset;
};

// Capsule name "dltensor", or "used_dltensor" once consumed.
struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

constexpr std::uint64_t flag_read_only = 1;
constexpr std::uint64_t flag_is_copied = 2;

// Capsule name "dltensor_versioned", or "used_dltensor_versioned" once consumed. With another major version nothing but
// the first three members may be touched.
struct ManagedTensorVersioned {
    Version version;
    void* context;
    void (*deleter)(ManagedTensorVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};

// The C exchange API (1.3): `type.__dlpack_c_exchange_api__` is a capsule "dlpack_exchange_api" that holds a pointer to
// this table, which lives as long as the process. Every function returns 0, or -1 with a Python error set (the
// allocator reports through set_error instead). None of them synchronises a device. The GIL must be held.
struct ExchangeHeader {
    Version version;
    ExchangeHeader* previous;  // the table of an older major version, or NULL
};

struct ExchangeApi {
    ExchangeHeader header;
    int (*allocate)(Tensor* prototype, ManagedTensorVersioned** out, void* error_context,
                    void (*set_error)(void* error_context, const char* kind, const char* message));
    int (*export_managed)(void* py_object, ManagedTensorVersioned** out);
    int (*import_managed)(ManagedTensorVersioned* tensor, void** out_py_object);  // steals the tensor on success
    int (*borrow)(void* py_object, Tensor* out);  // may be NULL; what it fills in stays the producer's
    int (*current_work_stream)(std::int32_t device_type, std::int32_t device_id, void** out_stream);
};

static_assert(sizeof(Tensor) == 48 && sizeof(ManagedTensor) == 64 && sizeof(ManagedTensorVersioned) == 80,
              "the layouts are those of a 64-bit system");

}  // namespace fastffn::dlpack
