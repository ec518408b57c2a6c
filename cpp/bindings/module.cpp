#include "bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of emmet: second moments, preservation metrics, the solver and its updates.";
  emmet::python::bind_errors(module);
  emmet::python::bind_covariance(module);
  emmet::python::bind_preservation(module);
  emmet::python::bind_update(module);
  emmet::python::bind_solve(module);
  emmet::python::bind_scratch(module);
  emmet::python::bind_linear(module);
}
