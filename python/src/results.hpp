// New arrays for results: the same kind as the array they come from.
#pragma once

#include "arrays.hpp"

namespace fastffn::python {

class Result {
  public:
    // `like` is the argument whose kind the result takes, and `source` how it was read. Contiguous and uninitialised;
    // `view` is where to write.
    Result(const Call& call, py::handle like, const Array& source, DType dtype, int ndim, const std::int64_t* shape);

    TensorView view;

    // The finished array. Call once, after writing.
    py::object finish();

  private:
    void allocate_numpy(py::handle like, const Array& source, DType dtype);
    void allocate_torch(const dlpack::ExchangeApi& exchange, dlpack::Device device);
    void allocate_torch_slow(py::handle like);
    void allocate_on_device(py::handle like);
    void allocate_owned(py::handle like);

    const Call& call_;
    bool wait_ = false;  // the framework knows no streams: what it gets must be done
    py::object object_;
    py::object from_dlpack_;  // where set: makes the framework's own array from object_, once that holds its values
};

}  // namespace fastffn::python
