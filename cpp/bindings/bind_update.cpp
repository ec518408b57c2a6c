#include <optional>

#include "bindings.h"
#include "emmet/error.h"
#include "emmet/preservation.h"
#include "emmet/update.h"

namespace emmet::python {
namespace {

Update compress(const Update& update, const Preservation& preservation, std::optional<int64_t> rank,
                std::optional<double> tolerance) {
  if (rank.has_value() == tolerance.has_value()) {
    throw Error(std::string("expected a rank or a tolerance, got ") + (rank ? "both" : "neither") + "; give one");
  }
  return rank ? update.compress_to_rank(preservation, *rank) : update.compress_to_tolerance(preservation, *tolerance);
}

py::dict to_dict(const Diagnostics& diagnostics) {
  using namespace py::literals;
  return py::dict("condition"_a = diagnostics.condition, "ridge"_a = diagnostics.ridge,
                  "constraint_residual"_a = diagnostics.constraint_residual,
                  "preservation_cost"_a = diagnostics.preservation_cost);
}

void bind_diagnostics(py::module_& module) {
  py::class_<Diagnostics>(module, "Diagnostics",
                          "What a solve found out about itself. Times are seconds; files do not keep them, and give 0.")
      .def(py::init([](double condition, double ridge, double constraint_residual, double preservation_cost) {
             return Diagnostics{condition, ridge, constraint_residual, preservation_cost};
           }),
           py::kw_only(), py::arg("condition"), py::arg("ridge"), py::arg("constraint_residual"),
           py::arg("preservation_cost"), "The inverse of `to_dict`, with times of 0.")
      .def_readonly("condition", &Diagnostics::condition, "Estimated condition number of the system that was solved.")
      .def_readonly("ridge", &Diagnostics::ridge, "The ridge μ that was used.")
      .def_readonly("constraint_residual", &Diagnostics::constraint_residual, "‖ΔK − R‖ / ‖R‖; 0 when R is 0.")
      .def_readonly("preservation_cost", &Diagnostics::preservation_cost,
                    "tr(Δ C Δᵀ), where C is what the metric of the solve stands for.")
      .def_readonly("seconds_whiten", &Diagnostics::seconds_whiten, "Triangular solves with the factor of C.")
      .def_readonly("seconds_system", &Diagnostics::seconds_system, "Gram matrix, its factorisation and solve.")
      .def("to_dict", &to_dict, "All but the times, by name: what files keep.");
}

}  // namespace

void bind_update(py::module_& module) {
  using std::filesystem::path;

  bind_diagnostics(module);
  py::class_<Update>(module, "Update",
                     "A weight update Δ [d_out, d_in], kept as factors Δ = left · right while these are smaller.")
      .def_static(
          "from_factors",
          [](const at::Tensor& left, const at::Tensor& right) { return Update::from_factors(left, right); },
          py::arg("left"), py::arg("right"), ReleaseGil(),
          "Take factors left [d_out, r] and right [r, d_in]; they are multiplied out when the product is smaller.\n\n"
          "Tensors of float64 are not copied: they are not to be changed afterwards.")
      .def_static(
          "from_dense", [](const at::Tensor& dense) { return Update::from_dense(dense); }, py::arg("dense"),
          ReleaseGil(),
          "Take Δ [d_out, d_in] as it is. A tensor of float64 is not copied: it is not to be changed afterwards.")
      .def("dense", &Update::dense, ReleaseGil(), "Δ, [d_out, d_in] float64.")
      .def("apply_", &Update::apply_, py::arg("weight"), py::arg("transposed") = false, ReleaseGil(),
           "weight += Δ in place; weight is [d_out, d_in], or [d_in, d_out] with `transposed` (GPT-2's Conv1D). Where\n"
           "it is on another device, a copy of Δ is taken there.\n\n"
           "The sum is formed in float64 and rounded. Raises ShapeError, or NonFiniteError when the weight or the\n"
           "sum is not finite; the weight is unchanged then.")
      .def("compress", &compress, py::arg("preservation"), py::kw_only(), py::arg("rank") = py::none(),
           py::arg("tolerance") = py::none(), ReleaseGil(),
           "The best approximation Δr in the metric: of least ‖(Δ − Δr)L‖ (Frobenius), where C = L Lᵀ.\n\n"
           "Either of at most `rank` ≥ 1, or of the least rank that keeps ‖(Δ − Δr)L‖ ≤ tolerance · ‖ΔL‖. Diagnostics\n"
           "remain those of the solve; what is lost of the edits is in `constraint_residual(keys, residuals)`. Raises\n"
           "EmmetError if the metric confines keys to a null space which the update leaves.")
      .def(
          "constraint_residual", &Update::constraint_residual, py::arg("keys"), py::arg("residuals"), ReleaseGil(),
          "‖ΔK − R‖ / ‖R‖ for keys [n, d_in] and residuals [n, d_out] on `device`: by how much the update misses what\n"
          "edits ask for. 0 when R is 0.")
      .def(
          "to", [](const Update& self, const DeviceLike& device) { return self.to(to_device(device)); },
          py::arg("device"), ReleaseGil(), "The same update on another device.")
      .def(
          "save", [](const Update& self, const path& file) { self.save(file.string()); }, py::arg("path"), ReleaseGil(),
          "Write one safetensors file.")
      .def_static(
          "load", [](const path& file) { return Update::load(file.string()); }, py::arg("path"), ReleaseGil(),
          "Read what `save` wrote. Raises FormatError for any other file.")
      .def_property_readonly("is_low_rank", &Update::is_low_rank, "Whether Δ is kept as factors.")
      .def_property_readonly(
          "left", &Update::left,
          "Left factor [d_out, rank], not copied: not to be changed. Raises EmmetError when Δ is dense.")
      .def_property_readonly(
          "right", &Update::right,
          "Right factor [rank, d_in], not copied: not to be changed. Raises EmmetError when Δ is dense.")
      .def_property_readonly(
          "shape", [](const Update& self) { return std::make_pair(self.rows(), self.columns()); }, "(d_out, d_in).")
      .def_property_readonly("device", &Update::device, "Device that holds Δ.")
      .def_property_readonly("rank", &Update::rank, "Width of the factors, or min(d_out, d_in) when Δ is dense.")
      .def_property_readonly("diagnostics", &Update::diagnostics,
                             "What the solve that made it found out about itself.");
}

}  // namespace emmet::python
