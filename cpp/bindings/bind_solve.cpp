#include "bindings.h"
#include "emmet/error.h"
#include "emmet/solve.h"

namespace emmet::python {
namespace {

// A ridge as Python users write it: a number or "auto".
using RidgeLike = std::variant<double, std::string>;

Ridge to_ridge(const RidgeLike& ridge) {
  if (const auto* value = std::get_if<double>(&ridge)) return Ridge(*value);
  const auto& word = std::get<std::string>(ridge);
  if (word == "auto") return Ridge::automatic();
  throw Error("ridge: expected a number >= 0 or \"auto\", got \"" + word + "\"");
}

}  // namespace

void bind_solve(py::module_& module) {
  module.def(
      "solve",
      [](const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals,
         const RidgeLike& ridge) { return solve(preservation, keys, residuals, to_ridge(ridge)); },
      py::arg("preservation"), py::arg("keys"), py::arg("residuals"), py::arg("ridge") = 0.0, ReleaseGil(),
      "Δ = R (KᵀC⁻¹K + μI)⁻¹ KᵀC⁻¹, the preservation-memorization objective in closed form (Gupta et al. 2024).\n\n"
      "keys [n, d_in] and residuals [n, d_out] are rows of any float dtype, on the metric's device; one key [d_in] "
      "and\n"
      "residual [d_out] are n = 1. `ridge` is μ ≥ 0, or \"auto\": the smallest that bounds the condition number of the "
      "system.\n\n"
      "With μ = 0 the constraint ΔK = R holds to 1e-6 relative, or DependentKeysError names the keys that prevent it, "
      "or\n"
      "NotPositiveDefiniteError says that the metric does, as one in float32 may. That is also raised where a ridge "
      "is\n"
      "too small to matter beside keys that depend on each other; ShapeError and NonFiniteError for bad input.");
  module.def(
      "solve_each",
      [](const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals,
         const RidgeLike& ridge) { return solve_each(preservation, keys, residuals, to_ridge(ridge)); },
      py::arg("preservation"), py::arg("keys"), py::arg("residuals"), py::arg("ridge") = 0.0, ReleaseGil(),
      "An update of rank one for each edit: what `solve` gives for its key and residual alone,\n"
      "Δᵢ = rᵢ kᵢᵀC⁻¹ / (kᵢᵀC⁻¹kᵢ + μ), with keys [n, d_in] and residuals [n, d_out] as there.\n\n"
      "The factor of C is read for many edits at once, which for thousands that are to know nothing of each other\n"
      "(ROME over a benchmark, an adapter for each fact) is much less than as many solves. Diagnostics are of each\n"
      "update, but for times, which are shares of what all took.\n\n"
      "Raises as `solve`; but keys may be alike: where μ = 0, DependentKeysError names those that are zero in the\n"
      "metric. \"auto\" is 0, as one edit alone is well conditioned.");
  module.def("rome", &rome, py::arg("preservation"), py::arg("key"), py::arg("residual"), ReleaseGil(),
             "ROME (Meng et al. 2022, eq. 2): one edit, key [d_in] and residual [d_out], equality constraint.");
  module.def("memit", &memit, py::arg("preservation"), py::arg("keys"), py::arg("residuals"), py::arg("lambda_"),
             ReleaseGil(), "MEMIT (Meng et al. 2023, eq. 14): least squares, C weighted by `lambda_` > 0.");
  module.def(
      "emmet",
      [](const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals,
         const RidgeLike& ridge) { return emmet(preservation, keys, residuals, to_ridge(ridge)); },
      py::arg("preservation"), py::arg("keys"), py::arg("residuals"), py::arg("ridge") = 0.0, ReleaseGil(),
      "EMMET (Gupta et al. 2024, eq. 14): a batch of edits under equality constraints.");
}

}  // namespace emmet::python
