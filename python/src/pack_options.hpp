// Keyword options of pack() as the library's PackOptions.
#pragma once

#include <list>

#include "arrays.hpp"
#include "fastffn/pack_options.hpp"

namespace fastffn::python {

// str, bool, int and float as they are, None as not given, anything else as an array of weights; `arrays` keeps those
// alive.
PackOptions read_options(const Call& call, const py::dict& options, std::list<Array>* arrays);

py::dict to_dict(const PackOptions& options);

}  // namespace fastffn::python
