#pragma once

#include <ATen/core/Tensor.h>

namespace emmet {

/// total [d, d] += scale · XᵀX for rows X [n, d], in the upper block triangle alone: nearly half the multiplications.
/// Products are summed in `dtype`.
void add_gram(const at::Tensor& total, const at::Tensor& rows, at::ScalarType dtype, double scale = 1.0);

/// Copies the upper triangle of a square matrix onto the lower one.
void mirror_upper_(const at::Tensor& matrix);

/// XᵀX [d, d] of float64 rows X [n, d], symmetric to the bit.
at::Tensor gram_matrix(const at::Tensor& rows);

}  // namespace emmet
