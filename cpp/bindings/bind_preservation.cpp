#include "bindings.h"
#include "emmet/preservation.h"

namespace emmet::python {

void bind_preservation(py::module_& module) {
  using std::filesystem::path;

  py::class_<Preservation>(module, "Preservation",
                           "The preservation metric: a cached factorisation through which C⁻¹ is applied to keys.\n\n"
                           "Keys are rows: K is [n, dim]. Immutable, so it may be shared between threads.")
      .def_static("from_second_moment", &Preservation::from_second_moment, py::arg("second_moment"),
                  py::arg("jitter") = py::none(), ReleaseGil(),
                  "Factorise the second moment C [dim, dim] (symmetric, finite).\n\n"
                  "`jitter` is added to the diagonal as a fraction of its mean; None takes the smallest of 0, 1e-10,\n"
                  "1e-9, …, 1e-2 with which C is safely positive definite. Raises NotPositiveDefiniteError.")
      .def("solve", &Preservation::solve, py::arg("keys"), ReleaseGil(),
           "C⁻¹ applied to keys [n, dim] (or one key [dim]): float64 of the same shape.")
      .def("gram", &Preservation::gram, py::arg("keys"), ReleaseGil(), "K C⁻¹ Kᵀ, [n, n] float64 symmetric.")
      .def("whiten", &Preservation::whiten, py::arg("keys"), ReleaseGil(),
           "L⁻¹k for each row of keys [n, dim], where C = L Lᵀ: [n, rank].")
      .def("unwhiten", &Preservation::unwhiten, py::arg("whitened"), ReleaseGil(),
           "L⁻ᵀa for each row of whitened [n, rank]: [n, dim].")
      .def("cost", &Preservation::cost, py::arg("delta"), ReleaseGil(),
           "tr(Δ C Δᵀ) for Δ [m, dim]: by how much an update disturbs the memories that C stands for.")
      .def("absorb", &Preservation::absorb, py::arg("keys"), py::arg("weight") = 1.0, ReleaseGil(),
           "The metric after keys [n, dim] have become memories: C + weight · Σ k kᵀ, as a new Preservation.")
      .def(
          "to", [](const Preservation& self, const DeviceLike& device) { return self.to(to_device(device)); },
          py::arg("device"), ReleaseGil(), "The same metric on another device.")
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
      .def_property_readonly("factor", &Preservation::factor, "Lower Cholesky factor L, [rank, rank] float64.")
      .def_property_readonly("jitter", &Preservation::jitter, "What was added to the diagonal, over its mean.")
      .def_property_readonly("dim", &Preservation::dim, "Width of a key.")
      .def_property_readonly("rank", &Preservation::rank, "Number of directions in which keys act.")
      .def_property_readonly("device", &Preservation::device, "Device that holds the factor.");
}

}  // namespace emmet::python
