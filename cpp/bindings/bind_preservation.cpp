#include "bindings.h"
#include "emmet/preservation.h"

namespace emmet::python {

void bind_preservation(py::module_& module) {
  using std::filesystem::path;

  py::class_<Preservation>(
      module, "Preservation",
      "The preservation metric: a cached factorisation through which C⁻¹ is applied to keys.\n\n"
      "Keys are rows: K is [n, dim]. Tensors have to be on `device`, or ShapeError is raised. Immutable,\n"
      "so it may be shared between threads.")
      .def_static("from_second_moment", &Preservation::from_second_moment, py::arg("second_moment"),
                  py::arg("jitter") = py::none(), ReleaseGil(),
                  "Factorise the second moment C [dim, dim] (symmetric, finite).\n\n"
                  "`jitter` is added to the diagonal as a fraction of its mean; None takes the smallest of 0, 1e-10,\n"
                  "1e-9, …, 1e-2 with which C is safely positive definite. Raises NotPositiveDefiniteError.")
      .def_static("null_space", &Preservation::null_space, py::arg("second_moment"), py::arg("threshold"),
                  py::arg("alpha") = 1.0, ReleaseGil(),
                  "The metric of AlphaEdit (Fang et al. 2025, arXiv 2410.02355), for `solve` with a ridge of 1.\n\n"
                  "The update is confined to the null space of the second moment C [dim, dim]: the span Q of its\n"
                  "eigenvectors with eigenvalues below `threshold`, which is measured on the scale of C (published:\n"
                  "0.02). Q (αI + QᵀK_pK_pᵀQ)⁻¹ Qᵀ stands for C⁻¹, with K_p the keys that were absorbed. Raises\n"
                  "EmmetError when no eigenvalue is below, NotPositiveDefiniteError when C is no second moment.")
      .def("solve", &Preservation::solve, py::arg("keys"), ReleaseGil(),
           "C⁻¹ applied to keys [n, dim] (or one key [dim]): float64 of the same shape.")
      .def("gram", &Preservation::gram, py::arg("keys"), ReleaseGil(), "K C⁻¹ Kᵀ, [n, n] float64 symmetric.")
      .def("whiten", &Preservation::whiten, py::arg("keys"), ReleaseGil(),
           "L⁻¹k for each row of keys [n, dim], where C = L Lᵀ; L⁻¹Qᵀk in a null space: [n, rank].")
      .def("unwhiten", &Preservation::unwhiten, py::arg("whitened"), ReleaseGil(),
           "L⁻ᵀa for each row of whitened [n, rank]; Q L⁻ᵀa in a null space: [n, dim].")
      .def("cost", &Preservation::cost, py::arg("delta"), ReleaseGil(),
           "tr(Δ C Δᵀ) for Δ [m, dim]: by how much an update disturbs the memories that C stands for.\n"
           "In a null space, what Δ does there.")
      .def("absorb", &Preservation::absorb, py::arg("keys"), py::arg("weight") = 1.0, ReleaseGil(),
           "The metric after keys [n, dim] have become memories: C + weight · Σ k kᵀ, as a new Preservation.")
      .def(
          "to", [](const Preservation& self, const DeviceLike& device) { return self.to(to_device(device)); },
          py::arg("device"), ReleaseGil(), "The same metric on another device.")
      .def("in_float32", &Preservation::in_float32, ReleaseGil(),
           "The same metric with its factor rounded to float32, for solves that read half the bytes. Constraints hold\n"
           "as exactly; Δ differs by the rounding of the metric. It cannot absorb and cannot be saved.")
      .def(
          "save", [](const Preservation& self, const path& file) { self.save(file.string()); }, py::arg("path"),
          ReleaseGil(), "Write one safetensors file.")
      .def_static(
          "load",
          [](const path& file, const DeviceLike& device) {
            return Preservation::load(file.string(), to_device(device));
          },
          py::arg("path"), py::arg("device") = "cpu", ReleaseGil(),
          "Read what `save` wrote. Raises FormatError for any other file.")
      .def_property_readonly(
          "factor", py::cpp_function(&Preservation::factor, ReleaseGil()),
          "Lower Cholesky factor L, [rank, rank]: float64, unless in_float32. Formed at each access.")
      .def_property_readonly("jitter", &Preservation::jitter, "What was added to the diagonal, over its mean.")
      .def_property_readonly("dim", &Preservation::dim, "Width of a key.")
      .def_property_readonly("rank", &Preservation::rank,
                             "Number of directions in which keys act: dim, or the dimension of the null space.")
      .def_property_readonly("device", &Preservation::device, "Device that holds the factor.");
}

}  // namespace emmet::python
