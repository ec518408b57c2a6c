#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace emmet {

/// Rows [n, width] of float64 zeros on `device`, for what is large and seldom read.
///
/// On a CPU, from a quarter of a GB on, they lie in a file that has no name, in TMPDIR or else /var/tmp, mapped into
/// memory: where that runs short, the system writes them out instead of ending the process. They are ordinary memory
/// where such a file cannot be had.
at::Tensor scratch_rows(int64_t n, int64_t width, c10::Device device);

}  // namespace emmet
