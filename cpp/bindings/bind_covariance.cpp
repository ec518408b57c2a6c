#include "bindings.h"
#include "emmet/covariance.h"

namespace emmet::python {

void bind_covariance(py::module_& module) {
  py::class_<Covariance>(
      module, "Covariance",
      "Running second moment C = E[k kᵀ] of the keys of one layer (Meng et al. 2022, section 3.1).\n\n"
      "Summed in float64, on `device`. Not to be changed by two threads at once.")
      .def(py::init([](int64_t dim, const DeviceLike& device) { return Covariance(dim, to_device(device)); }),
           py::arg("dim"), py::arg("device") = "cpu", ReleaseGil(), "An empty moment of keys of width `dim`.")
      .def_static("from_sum", &Covariance::from_sum, py::arg("sum"), py::arg("count"), ReleaseGil(),
                  "Continue from what `sum()` [dim, dim] and `count()` gave earlier.")
      .def("add", &Covariance::add, py::arg("keys"), py::arg("mask") = py::none(), ReleaseGil(),
           "Add keys [..., dim] on `device`, of any float dtype; with `mask` [...], only the rows that it selects.\n\n"
           "Raises ShapeError, or NonFiniteError naming the first bad row; nothing is added then. Where memory runs "
           "out\n"
           "midway, the moment is lost: all that reads or changes the sum raises EmmetError from then on.")
      .def("merge", &Covariance::merge, py::arg("other"), ReleaseGil(),
           "Add what another moment of the same width has seen, on whatever device.")
      .def("sum", &Covariance::sum, ReleaseGil(), "Σ k kᵀ, [dim, dim] float64, symmetric.")
      .def("second_moment", &Covariance::second_moment, ReleaseGil(),
           "C = Σ k kᵀ / count, [dim, dim] float64, symmetric. Raises EmmetError when no key was added.")
      .def("count", &Covariance::count, "Number of keys added.")
      .def_property_readonly("dim", &Covariance::dim, "Width of a key.")
      .def_property_readonly("device", &Covariance::device, "Device on which keys are summed.");
}

}  // namespace emmet::python
