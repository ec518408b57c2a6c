#pragma once

#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <variant>

namespace emmet::python {

/// Every call that computes lets other Python threads run.
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

/// A device as Python users write it: "cpu", "cuda:1" or a torch.device.
using DeviceLike = std::variant<std::string, c10::Device>;

inline c10::Device to_device(const DeviceLike& device) {
  if (const auto* name = std::get_if<std::string>(&device)) return c10::Device(*name);
  return std::get<c10::Device>(device);
}

void bind_errors(py::module_& module);
void bind_covariance(py::module_& module);
void bind_linear(py::module_& module);
void bind_preservation(py::module_& module);
void bind_update(py::module_& module);
void bind_scratch(py::module_& module);
void bind_solve(py::module_& module);

}  // namespace emmet::python
