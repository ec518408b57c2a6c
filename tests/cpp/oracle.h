#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>

// Definitions spelt out as float64 loops, to compare the library with. Nothing here is meant to be fast.
namespace oracle {

/// Standard normal entries, the same for the same seed on every machine's standard library of one kind.
inline at::Tensor random(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype = at::kDouble) {
  at::Tensor values = at::empty(sizes, at::TensorOptions(at::kDouble));
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  auto* data = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    data[i] = normal(engine);
  }
  return values.to(dtype);
}

/// a · b for a [m, k] and b [k, n].
inline at::Tensor multiply(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor left = a.to(at::kDouble), right = b.to(at::kDouble);
  at::Tensor product = at::zeros({a.size(0), b.size(1)}, at::TensorOptions(at::kDouble));
  const auto x = left.accessor<double, 2>(), y = right.accessor<double, 2>();
  auto out = product.accessor<double, 2>();
  for (int64_t i = 0; i < a.size(0); ++i) {
    for (int64_t k = 0; k < a.size(1); ++k) {
      for (int64_t j = 0; j < b.size(1); ++j) {
        out[i][j] += x[i][k] * y[k][j];
      }
    }
  }
  return product;
}

/// a⁻¹ by Gauss–Jordan elimination with row pivoting.
inline at::Tensor inverse(const at::Tensor& a) {
  const int64_t size = a.size(0);
  at::Tensor work = a.to(at::kDouble).clone();
  at::Tensor result = at::eye(size, at::TensorOptions(at::kDouble));
  auto w = work.accessor<double, 2>();
  auto r = result.accessor<double, 2>();
  for (int64_t column = 0; column < size; ++column) {
    int64_t pivot = column;
    for (int64_t row = column; row < size; ++row) {
      pivot = std::abs(w[row][column]) > std::abs(w[pivot][column]) ? row : pivot;
    }
    const double scale = 1.0 / w[pivot][column];
    for (int64_t j = 0; j < size; ++j) {
      std::swap(w[pivot][j], w[column][j]);
      std::swap(r[pivot][j], r[column][j]);
      w[column][j] *= scale;
      r[column][j] *= scale;
    }
    for (int64_t row = 0; row < size; ++row) {
      const double factor = row == column ? 0.0 : w[row][column];
      for (int64_t j = 0; j < size; ++j) {
        w[row][j] -= factor * w[column][j];
        r[row][j] -= factor * r[column][j];
      }
    }
  }
  return result;
}

/// ‖actual − expected‖ / ‖expected‖, Frobenius; ‖actual‖ when expected is 0.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const double size = expected.to(at::kDouble).norm().item<double>();
  const double error = actual.to(at::kDouble).sub(expected.to(at::kDouble)).norm().item<double>();
  return size > 0 ? error / size : error;
}

/// The message of the Expected that `action` throws; a failure of the test when it throws nothing.
template <typename Expected, typename Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an error, got none";
  return {};
}

}  // namespace oracle
