#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace emmet {

/// Throws ShapeError unless `tensor` is defined and float16, bfloat16, float32 or float64.
void require_floating(const at::Tensor& tensor, const std::string& name);

/// Throws ShapeError unless the last dimension of `tensor` is `width`.
void require_width(const at::Tensor& tensor, int64_t width, const std::string& name);

/// Throws ShapeError unless `tensor` is on `device`.
void require_device(const at::Tensor& tensor, c10::Device device, const std::string& name);

/// Throws NonFiniteError naming the first row of `tensor` [..., d] that holds NaN or Inf. Rows are counted from 1,
/// over all leading dimensions together. Where `selected` (boolean, one entry a row) is given, other rows are not
/// looked at.
void require_finite_rows(const at::Tensor& tensor, const std::string& name,
                         const std::optional<at::Tensor>& selected = std::nullopt);

/// Throws ShapeError unless `matrix` is floating, [d, d] with d > 0, and symmetric but for what sums in float32 leave;
/// NonFiniteError unless it is finite. `source` is what gives such a matrix.
void require_symmetric(const at::Tensor& matrix, const std::string& name, const std::string& source);

/// Throws Error unless `value` is finite and at least 0.
void require_not_negative(double value, const std::string& name);

/// Throws ShapeError unless there are as many rows of residuals as of keys.
void require_same_count(const at::Tensor& keys, const at::Tensor& residuals);

/// `tensor` [n, width] on `device`, or [width] taken as n = 1, as float64 rows. Throws ShapeError and NonFiniteError.
at::Tensor as_rows(const at::Tensor& tensor, int64_t width, c10::Device device, const std::string& name);

/// max |x| over all entries: NaN when there is a NaN, 0 when there are no entries.
double largest_magnitude(const at::Tensor& tensor);

/// ‖error‖ / ‖reference‖, Frobenius; 0 when the reference is 0.
double relative_norm(const at::Tensor& error, const at::Tensor& reference);

}  // namespace emmet
