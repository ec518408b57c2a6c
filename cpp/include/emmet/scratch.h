#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace emmet {

/// Rows [n, width] of float64 zeros on `device`, for what is large and read in few passes.
///
/// On Linux and a CPU, from a quarter of a GB on, they lie in a file without a name, in the folder TMPDIR or else
/// /var/tmp, mapped into memory: the system writes them out when it likes, and takes the memory where that runs short.
/// The file is gone with the tensor, or the process. They are ordinary memory where such a file cannot be had: where
/// the folder is in memory itself (tmpfs), has less than twice that room, or may not be written to. A disk that fails,
/// or that promises room which it does not have, ends the process (SIGBUS).
at::Tensor scratch_rows(int64_t n, int64_t width, c10::Device device);

}  // namespace emmet
