#include "bindings.h"
#include "emmet/scratch.h"

namespace emmet::python {

void bind_scratch(py::module_& module) {
  module.def(
      "scratch_rows",
      [](int64_t n, int64_t width, const DeviceLike& device) { return scratch_rows(n, width, to_device(device)); },
      py::arg("n"), py::arg("width"), py::arg("device") = "cpu", ReleaseGil(),
      "Rows [n, width] of float64 zeros, for what is large and read in few passes.\n\n"
      "On Linux and a CPU, from a quarter of a GB on, they lie in a file without a name, in the folder TMPDIR or else\n"
      "/var/tmp, mapped into memory: the system takes it where that runs short. They are ordinary memory where such a\n"
      "file cannot be had: where the folder is in memory itself (tmpfs), or has less than twice that room.");
}

}  // namespace emmet::python
