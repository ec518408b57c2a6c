#include "cholesky_factor.h"

#include <ATen/Parallel.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "oracle.h"
#include "reduced_precision.h"

namespace {

using emmet::CholeskyFactor;

constexpr double kTolerance = 1e-11;

/// A symmetric matrix [size, size] with a condition number below 1e3.
at::Tensor definite(int64_t size, uint64_t seed = 1) {
  const at::Tensor rows = oracle::random({4 * size, size}, seed);
  return at::matmul(rows.t(), rows).div(4 * size);
}

at::Tensor lower_of(const CholeskyFactor& factor) { return factor.upper().t(); }

/// Sizes that divide in halves and such that do not; the largest is of more than a block of rows or columns.
class FactorOfSize : public testing::TestWithParam<int64_t> {
 protected:
  const int64_t size = GetParam();
  const at::Tensor matrix = definite(size);
  const CholeskyFactor factor = CholeskyFactor::of(matrix, 0.0).value();
};

TEST_P(FactorOfSize, IsLowerTriangularAndGivesTheMatrix) {
  const at::Tensor lower = lower_of(factor);
  EXPECT_EQ(factor.size(), size);
  EXPECT_TRUE(lower.equal(lower.tril()));
  EXPECT_TRUE(lower.diagonal().equal(factor.diagonal()));
  EXPECT_TRUE(factor.diagonal().gt(0).all().item<bool>());
  EXPECT_LT(oracle::relative_error(at::matmul(lower, lower.t()), matrix), kTolerance);
}

TEST_P(FactorOfSize, TakesHalfTheMemoryOfASquare) {
  EXPECT_LE(factor.corners().numel() + factor.side().numel(), size * size / 2 + size + 1);
}

TEST_P(FactorOfSize, MultipliesAndSolves) {
  const at::Tensor lower = lower_of(factor);
  for (const int64_t count : {1, 3}) {  // one row has kernels of its own
    const at::Tensor rows = oracle::random({count, size}, 2);
    EXPECT_LT(oracle::relative_error(factor.multiplied(rows), at::matmul(rows, lower)), kTolerance);
    const at::Tensor solved = rows.clone(), transposed = rows.clone();
    factor.solve_(solved);  // L x = r for rows: x Lᵀ = r
    EXPECT_LT(oracle::relative_error(at::matmul(solved, lower.t()), rows), kTolerance) << count;
    factor.solve_transposed_(transposed);
    EXPECT_LT(oracle::relative_error(at::matmul(transposed, lower), rows), kTolerance) << count;
  }
}

TEST_P(FactorOfSize, SolvesForARowAlikeWithAnyNumberOfThreads) {
  const at::Tensor row = oracle::random({1, size}, 2), transposed = row.clone(), solved = row.clone();
  factor.solve_(solved);
  factor.solve_transposed_(transposed);
  const int threads = at::get_num_threads();
  for (const int count : {1, 3}) {
    at::set_num_threads(count);
    const at::Tensor again = row.clone(), transposed_again = row.clone();
    factor.solve_(again);
    factor.solve_transposed_(transposed_again);
    at::set_num_threads(threads);
    EXPECT_TRUE(again.equal(solved)) << count;
    EXPECT_TRUE(transposed_again.equal(transposed)) << count;
  }
}

TEST_P(FactorOfSize, IsThatOfItsUpperTriangle) {
  at::Tensor upper = lower_of(factor).t().contiguous();
  upper.add_(at::ones_like(upper).tril(-1));  // does not count
  const auto same = CholeskyFactor::from_upper(upper);
  EXPECT_TRUE(same.corners().equal(factor.corners()));
  EXPECT_TRUE(same.side().equal(factor.side()));
}

TEST_P(FactorOfSize, ReadsTheUpperTriangleAlone) {
  const at::Tensor below = at::ones_like(matrix).tril(-1).to(at::kBool), half = matrix.masked_fill(below, std::nan(""));
  EXPECT_TRUE(CholeskyFactor::of(half, 0.0)->upper().equal(factor.upper()));
}

TEST_P(FactorOfSize, IsThatOfItsParts) {
  const at::Tensor &corners = factor.corners(), &side = factor.side();
  EXPECT_TRUE(CholeskyFactor::from_parts(corners, side)->upper().equal(factor.upper()));
  EXPECT_FALSE(CholeskyFactor::from_parts(corners.neg(), side));
  if (size % 2 == 1) {
    const at::Tensor damaged = corners.clone();
    damaged[size / 2][size / 2] = 0.0;  // the 1 that L₁ᵀ ends in
    EXPECT_FALSE(CholeskyFactor::from_parts(damaged, side));
  }
  EXPECT_FALSE(CholeskyFactor::from_parts(corners.narrow(0, 0, corners.size(0) - 1), side));
  EXPECT_FALSE(CholeskyFactor::from_parts(corners, side.narrow(0, 0, side.size(0) - 1)));
}

TEST_P(FactorOfSize, InFloat32SolvesAndMultipliesByRounding) {
  const auto rounded = factor.to(at::kFloat);
  EXPECT_EQ(rounded.dtype(), at::kFloat);
  for (const int64_t count : {1, 3}) {
    const at::Tensor rows = oracle::random({count, size}, 2), exact = rows.clone(), solved = rows.clone();
    factor.solve_(exact);
    rounded.solve_(solved);
    EXPECT_EQ(solved.scalar_type(), at::kDouble);
    EXPECT_LT(oracle::relative_error(solved, exact), 1e-4) << count;
    EXPECT_LT(oracle::relative_error(rounded.multiplied(rows), factor.multiplied(rows)), 1e-6);
  }
}

/// Few rows are rotated into a factor, more are reflected, and those of more than a block one block after the other.
TEST_P(FactorOfSize, IsUpdatedByRows) {
  const at::Tensor before = factor.upper();
  for (const int64_t count : {1, 3, 32, 33, 1500}) {
    const at::Tensor rows = oracle::random({count, size}, 3);
    const auto updated = factor.updated(rows, 2.0);
    const at::Tensor sum = matrix.add(at::matmul(rows.t(), rows), 2.0);
    EXPECT_LT(oracle::relative_error(lower_of(updated), lower_of(*CholeskyFactor::of(sum, 0.0))), kTolerance) << count;
    EXPECT_TRUE(updated.diagonal().gt(0).all().item<bool>());
  }
  EXPECT_TRUE(factor.upper().equal(before));
}

INSTANTIATE_TEST_SUITE_P(, FactorOfSize, testing::Values(1, 2, 7, 8, 2100));

TEST(CholeskyFactor, SolvesMoreRowsThanABlock) {
  const auto factor = CholeskyFactor::of(definite(6), 0.0).value();
  const at::Tensor rows = oracle::random({2500, 6}, 2), solved = rows.clone(), transposed = rows.clone();
  factor.solve_(solved);
  EXPECT_LT(oracle::relative_error(at::matmul(solved, factor.upper()), rows), kTolerance);
  factor.solve_transposed_(transposed);
  EXPECT_LT(oracle::relative_error(at::matmul(transposed, lower_of(factor)), rows), kTolerance);
}

TEST(CholeskyFactor, KeepsDigitsWhereTorchIsAskedToDropSome) {
  const auto rounded = CholeskyFactor::of(definite(400), 0.0)->to(at::kFloat);
  const at::Tensor upper = rounded.upper().to(at::kDouble), rows = oracle::random({64, 400}, 2);
  for (const auto precision : {at::Float32Precision::BF16, at::Float32Precision::TF32}) {
    const ReducedPrecision reduced(precision);
    const at::Tensor solved = rows.clone(), transposed = rows.clone();
    rounded.solve_(solved);
    EXPECT_LT(oracle::relative_error(at::matmul(solved, upper), rows), 1e-5);
    rounded.solve_transposed_(transposed);
    EXPECT_LT(oracle::relative_error(at::matmul(transposed, upper.t()), rows), 1e-5);
  }
}

TEST(CholeskyFactor, AddsTheShift) {
  const at::Tensor matrix = definite(7), lower = lower_of(*CholeskyFactor::of(matrix, 2.5));
  const at::Tensor shifted = matrix.add(at::eye(7, matrix.options()), 2.5);
  EXPECT_LT(oracle::relative_error(at::matmul(lower, lower.t()), shifted), kTolerance);
}

TEST(CholeskyFactor, IsNoneOfAnIndefiniteMatrix) {
  for (const int64_t place : {0, 3, 4, 6}) {  // in the first half, and in the second
    at::Tensor matrix = definite(7);
    matrix[place][place] = -1.0;
    EXPECT_FALSE(CholeskyFactor::of(matrix, 0.0)) << place;
  }
}

}  // namespace
