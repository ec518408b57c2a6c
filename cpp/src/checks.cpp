#include "checks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/nonzero.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "emmet/error.h"

namespace emmet {
namespace {

constexpr double kAsymmetry = 1e-6;  // relative; sums that were made in float32 pass
// Rows of a matrix that are compared with its columns at a time.
constexpr int64_t kBlockRows = 512;

}  // namespace

void require_floating(const at::Tensor& tensor, const std::string& name) {
  if (!tensor.defined()) {
    throw ShapeError(c10::str("expected ", name, ", got an undefined tensor; pass a floating-point tensor"));
  }
  switch (tensor.scalar_type()) {
    case at::kHalf:
    case at::kBFloat16:
    case at::kFloat:
    case at::kDouble:
      return;
    default:
      throw ShapeError(c10::str("expected ", name, " of float16, bfloat16, float32 or float64, got ",
                                tensor.scalar_type(), "; convert it first, for example to float32"));
  }
}

void require_width(const at::Tensor& tensor, int64_t width, const std::string& name) {
  if (tensor.dim() == 0 || tensor.size(-1) != width) {
    throw ShapeError(c10::str("expected ", name, " [..., ", width, "], got ", tensor.sizes(),
                              "; check that it belongs to the same layer and is not transposed"));
  }
}

void require_device(const at::Tensor& tensor, c10::Device device, const std::string& name) {
  if (tensor.device() != device) {
    throw ShapeError(
        c10::str("expected ", name, " on ", device, ", got ", tensor.device(), "; move one of the two to the other"));
  }
}

void require_finite_rows(const at::Tensor& tensor, const std::string& name, const std::optional<at::Tensor>& selected) {
  if (std::isfinite(largest_magnitude(tensor))) {
    return;
  }
  const int64_t width = tensor.dim() == 0 ? 1 : tensor.size(-1);
  const at::Tensor rows = tensor.reshape({-1, width});
  at::Tensor bad = at::isfinite(rows).all(1).logical_not();
  if (selected) {
    bad = bad.logical_and(selected->reshape(-1));
  }
  const at::Tensor indices = at::nonzero(bad);
  if (indices.numel() == 0) {
    return;
  }
  const int64_t row = indices[0].item<int64_t>();
  const char* found = at::isnan(rows[row]).any().item<bool>() ? "NaN" : "Inf";
  throw NonFiniteError(c10::str("expected finite ", name, ", got ", found, " in row ", row + 1, " of ", rows.size(0),
                                "; leave that row out, or find what makes it overflow"));
}

void require_symmetric(const at::Tensor& matrix, const std::string& name, const std::string& source) {
  require_floating(matrix, name);
  if (matrix.dim() != 2 || matrix.size(0) != matrix.size(1) || matrix.size(0) == 0) {
    throw ShapeError(c10::str("expected ", name, " [d, d], got ", matrix.sizes(), "; pass what ", source, " gives"));
  }
  require_finite_rows(matrix, name);
  double asymmetry = 0.0;
  for (int64_t row = 0; row < matrix.size(0); row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, matrix.size(0) - row);
    const auto difference = matrix.narrow(0, row, count) - matrix.narrow(1, row, count).mT();
    asymmetry = std::max(asymmetry, largest_magnitude(difference));
  }
  const double largest = largest_magnitude(matrix);
  if (asymmetry > kAsymmetry * largest) {
    throw ShapeError(c10::str("expected a symmetric ", name, ", got one with a relative asymmetry of ",
                              asymmetry / largest, "; pass what ", source, " gives"));
  }
}

void require_not_negative(double value, const std::string& name) {
  if (!(std::isfinite(value) && value >= 0)) {
    throw Error(c10::str("expected ", name, " >= 0, got ", value, "; give a finite number that is not negative"));
  }
}

void require_same_count(const at::Tensor& keys, const at::Tensor& residuals) {
  if (residuals.size(0) != keys.size(0)) {
    throw ShapeError(c10::str("expected as many residuals as keys, got ", residuals.size(0), " and ", keys.size(0),
                              "; give one row of each an edit"));
  }
}

at::Tensor as_rows(const at::Tensor& tensor, int64_t width, c10::Device device, const std::string& name) {
  require_floating(tensor, name);
  require_width(tensor, width, name);
  require_device(tensor, device, name);
  if (tensor.dim() > 2 || tensor.numel() == 0) {
    throw ShapeError(c10::str("expected ", name, " [n, ", width, "] with n > 0 and some width, got ", tensor.sizes(),
                              "; give one row an edit"));
  }
  require_finite_rows(tensor, name);
  return tensor.reshape({-1, width}).to(at::kDouble);
}

double largest_magnitude(const at::Tensor& tensor) {
  if (tensor.numel() == 0) {
    return 0.0;
  }
  const auto [smallest, largest] = at::aminmax(tensor);
  return at::maximum(largest, smallest.neg()).item<double>();  // both are NaN if one entry is; a GPU is waited for once
}

double relative_norm(const at::Tensor& error, const at::Tensor& reference) {
  const auto scale = reference.norm().item<double>();
  return scale == 0.0 ? 0.0 : error.norm().item<double>() / scale;
}

}  // namespace emmet
