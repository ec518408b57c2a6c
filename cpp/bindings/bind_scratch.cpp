#include "bindings.h"
#include "emmet/scratch.h"

namespace emmet::python {

void bind_scratch(py::module_& module) {
  module.def(
      "scratch_rows",
      [](int64_t n, int64_t width, const DeviceLike& device) { return scratch_rows(n, width, to_device(device)); },
      py::arg("n"), py::arg("width"), py::arg("device") = "cpu", ReleaseGil(),
      "Rows [n, width] of float64 zeros, for what is large and seldom read.\n\n"
      "On a CPU, from a quarter of a GB on, they lie in a file that has no name, in TMPDIR or else /var/tmp, mapped\n"
      "into memory: where that runs short, the system writes them out. They are ordinary memory where such a file\n"
      "cannot be had.");
}

}  // namespace emmet::python
