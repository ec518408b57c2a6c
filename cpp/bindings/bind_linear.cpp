#include "bindings.h"
#include "linear.h"

namespace emmet::python {

void bind_linear(py::module_& module) {
  module.def("linear", &linear, py::arg("x"), py::arg("weight"), py::arg("bias") = py::none(), ReleaseGil(),
             "x Wᵀ + b by oneDNN where it applies, for x [..., in], W [out, in] and b [out], without gradients.");
  module.def("prefers_onednn", &prefers_onednn,
             "Whether float32 products are quicker by oneDNN on this CPU than by what torch calls for them.");
}

}  // namespace emmet::python
