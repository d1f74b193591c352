// What the C functions share: arguments to views, statuses to codes and messages, and no exception past the border.
#pragma once

#include <cstring>
#include <new>
#include <string>

#include "fastffn/fastffn.h"
#include "fastffn/fastffn.hpp"

struct fastffn_context {
    fastffn::Context context;
};

namespace fastffn::capi {

inline fastffn_status report(const Status& status, fastffn_error* error) noexcept {
    const auto code = static_cast<fastffn_status>(status.code());
    if (error) {
        error->status = code;
        const std::string& message = status.message();
        const std::size_t room = sizeof error->message - 1;
        const std::size_t length = message.size() < room ? message.size() : room;
        std::memcpy(error->message, message.data(), length);
        error->message[length] = '\0';
    }
    return code;
}
static_assert(static_cast<int>(StatusCode::ok) == FASTFFN_OK &&
              static_cast<int>(StatusCode::invalid_argument) == FASTFFN_INVALID_ARGUMENT &&
              static_cast<int>(StatusCode::unsupported) == FASTFFN_UNSUPPORTED &&
              static_cast<int>(StatusCode::corrupt) == FASTFFN_CORRUPT &&
              static_cast<int>(StatusCode::out_of_memory) == FASTFFN_OUT_OF_MEMORY);
static_assert(static_cast<int>(DType::f32) == FASTFFN_F32 && static_cast<int>(DType::f16) == FASTFFN_F16 &&
              static_cast<int>(DType::bf16) == FASTFFN_BF16 && static_cast<int>(DType::u8) == FASTFFN_U8 &&
              static_cast<int>(DType::i8) == FASTFFN_I8 && static_cast<int>(DType::i32) == FASTFFN_I32 &&
              static_cast<int>(DType::i64) == FASTFFN_I64 && static_cast<int>(DType::f64) == FASTFFN_F64 &&
              max_dims == FASTFFN_MAX_DIMS);

// What is wrong with an argument before the library could look at it.
struct Refused {
    Status status;
};

[[noreturn]] inline void refuse(const char* operation, const std::string& text) {
    throw Refused{Status(StatusCode::invalid_argument, std::string(operation) + ": " + text)};
}

// Runs `body`, which returns a Status.
template <class Body>
fastffn_status call(fastffn_error* error, Body body) noexcept {
    try {
        return report(body(), error);
    } catch (const Refused& refused) {
        return report(refused.status, error);
    } catch (const std::bad_alloc&) {
        if (error) {
            error->status = FASTFFN_OUT_OF_MEMORY;
            std::strcpy(error->message, "fastffn: no memory");
        }
        return FASTFFN_OUT_OF_MEMORY;
    } catch (...) {
        if (error) {
            error->status = FASTFFN_UNSUPPORTED;
            std::strcpy(error->message, "fastffn: an exception of the C++ runtime");
        }
        return FASTFFN_UNSUPPORTED;
    }
}

inline TensorView view(const char* operation, const char* name, const fastffn_tensor* tensor) {
    if (!tensor) refuse(operation, std::string(name) + " is NULL");
    if (tensor->dtype < 0 || tensor->dtype > FASTFFN_F64)
        refuse(operation,
               std::string(name) + " has dtype number " + std::to_string(tensor->dtype) + ", expected 0 to 7");
    if (tensor->ndim < 0 || tensor->ndim > FASTFFN_MAX_DIMS)
        refuse(operation,
               std::string(name) + " has " + std::to_string(tensor->ndim) + " dimensions, expected at most 8");
    TensorView result;
    result.data = tensor->data;
    result.dtype = static_cast<DType>(tensor->dtype);
    result.ndim = tensor->ndim;
    for (int i = 0; i < tensor->ndim; ++i) {
        result.shape[i] = tensor->shape[i];
        result.strides[i] = tensor->strides[i];
    }
    return result;
}

// An argument that may be NULL: a view, and where it is.
class OptionalView {
  public:
    OptionalView(const char* operation, const char* name, const fastffn_tensor* tensor) : given_(tensor != nullptr) {
        if (given_) view_ = view(operation, name, tensor);
    }
    const TensorView* get() const { return given_ ? &view_ : nullptr; }

  private:
    bool given_;
    TensorView view_;
};

inline PackedView view(fastffn_packed packed) { return {packed.data, packed.bytes}; }

inline Context& context_of(const char* operation, fastffn_context* context) {
    if (!context) refuse(operation, "context is NULL");
    return context->context;
}

// A struct that callers size: all members of this version, or an error. Versions to come may accept less.
template <class Struct>
const Struct& sized(const char* operation, const char* name, const Struct* argument) {
    if (!argument) refuse(operation, std::string(name) + " is NULL");
    if (argument->size != sizeof(Struct))
        refuse(operation, std::string(name) + "->size is " + std::to_string(argument->size) + ", expected " +
                              std::to_string(sizeof(Struct)) + ", sizeof the struct");
    return *argument;
}

// A name to a value through one of the parse functions; `text` NULL is an error.
template <class Value>
Value parse(const char* operation, const char* name, const char* text, Status (*parser)(const char*, Value*)) {
    if (!text) refuse(operation, std::string(name) + " is NULL, expected a name");
    Value value;
    if (Status status = parser(text, &value); !status.ok()) refuse(operation, status.message());
    return value;
}

}  // namespace fastffn::capi
