#include "emmet/cholesky_factor.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tril.h>
#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <utility>

#include "cpu/cholesky_update.h"
#include "cuda/cholesky_update.h"
#include "gram.h"
#include "system.h"

namespace emmet {
namespace {

// A pivot this small relative to its diagonal entry is rounding error, not information.
constexpr double kSmallestPivot = 1e-13;
// Rows that are solved for at a time, and columns that are multiplied: they are copied for it.
constexpr int64_t kBlock = 1024;

// Solves T x = r, in place, for each row r of a contiguous array. T is a triangle of a square that lies in memory
// without gaps, by rows or by columns, so that no copy is made of either.
void solve_rows_(const at::Tensor& rows, const at::Tensor& triangle, bool upper) {
  auto columns = rows.mT();
  at::linalg_solve_triangular_out(columns, triangle, columns, upper);
}

// The halves of some rows, contiguous and of a dtype.
std::pair<at::Tensor, at::Tensor> halves(const at::Tensor& rows, int64_t split, at::ScalarType dtype) {
  const auto half = [&](int64_t first, int64_t count) {
    return at::empty({rows.size(0), count}, rows.options().dtype(dtype)).copy_(rows.narrow(1, first, count));
  };
  return {half(0, split), half(split, rows.size(1) - split)};
}

// Calls `change` with the halves of some rows at a time, and writes back what it leaves.
template <typename Change>
void change_halves_(const at::Tensor& rows, int64_t split, at::ScalarType dtype, const Change& change) {
  for (int64_t row = 0; row < rows.size(0); row += kBlock) {
    const auto block = rows.narrow(0, row, std::min(kBlock, rows.size(0) - row));
    const auto [left, right] = halves(block, split, dtype);
    change(left, right);
    block.narrow(1, 0, split).copy_(left);
    block.narrow(1, split, right.size(1)).copy_(right);
  }
}

}  // namespace

CholeskyFactor::CholeskyFactor(const at::Tensor& corners, const at::Tensor& side)
    : corners_(corners.contiguous()), side_(side.contiguous()) {}

at::Tensor CholeskyFactor::first() const { return corners_.narrow(0, 0, split()).narrow(1, 0, split()); }

at::Tensor CholeskyFactor::second() const { return corners_.narrow(0, 1, corners_.size(1)); }

std::optional<CholeskyFactor> CholeskyFactor::of(const at::Tensor& matrix, double shift) {
  const int64_t size = matrix.size(0), split = size / 2, rest = size - split;
  const auto part = [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
    return at::empty({rows, columns}, matrix.options()).copy_(matrix.narrow(0, row, rows).narrow(1, column, columns));
  };
  const CholeskyFactor factor(at::zeros({rest + 1, rest}, matrix.options()), part(split, rest, 0, split));
  if (split > 0) {
    const auto square = part(0, split, 0, split);
    square.diagonal().add_(shift);
    if (!factorise_(square.mT())) return std::nullopt;  // stored by columns, it is L₁; by rows, L₁ᵀ
    solve_rows_(factor.side_, square.mT(), /*upper=*/false);
    factor.first().add_(square);
  }
  const auto square = part(split, rest, split, rest);
  square.diagonal().add_(shift);
  add_gram(square, factor.side_.mT(), at::kDouble, -1.0);
  if (!factorise_(square.mT())) return std::nullopt;
  factor.second().add_(square.mT());

  const auto pivots = factor.diagonal().square() / (matrix.diagonal() + shift);
  if (!(pivots.min().item<double>() >= kSmallestPivot)) return std::nullopt;
  return factor;
}

CholeskyFactor CholeskyFactor::from_upper(const at::Tensor& upper) {
  const int64_t size = upper.size(0), split = size / 2, rest = size - split;
  const auto side = upper.narrow(0, 0, split).narrow(1, split, rest).mT().contiguous();
  const CholeskyFactor factor(at::zeros({rest + 1, rest}, upper.options()), side);
  factor.first().add_(at::triu(upper.narrow(0, 0, split).narrow(1, 0, split)));
  factor.second().add_(at::triu(upper.narrow(0, split, rest).narrow(1, split, rest)).mT());
  return factor;
}

void CholeskyFactor::solve_(const at::Tensor& rows) const {
  const at::NoTF32Guard no_tf32;
  change_halves_(rows, split(), dtype(), [&](const at::Tensor& left, const at::Tensor& right) {
    solve_rows_(left, first().mT(), /*upper=*/false);
    right.addmm_(left, side_.mT(), 1, -1);
    solve_rows_(right, second(), /*upper=*/false);
  });
}

void CholeskyFactor::solve_transposed_(const at::Tensor& rows) const {
  const at::NoTF32Guard no_tf32;
  change_halves_(rows, split(), dtype(), [&](const at::Tensor& left, const at::Tensor& right) {
    solve_rows_(right, second().mT(), /*upper=*/true);
    left.addmm_(right, side_, 1, -1);
    solve_rows_(left, first(), /*upper=*/true);
  });
}

at::Tensor CholeskyFactor::multiplied(const at::Tensor& rows) const {
  const at::NoTF32Guard no_tf32;
  const auto [left, right] = halves(rows, split(), at::kDouble);
  const auto product = at::empty_like(rows);
  product.narrow(1, 0, split()).copy_(at::matmul(right, side_.to(at::kDouble)));
  for (int64_t start = 0; start < split(); start += kBlock) {
    const int64_t width = std::min(kBlock, split() - start), below = split() - start;
    const auto block = at::triu(first().narrow(0, start, width).narrow(1, start, below)).to(at::kDouble);
    product.narrow(1, start, width).add_(at::matmul(left.narrow(1, start, below), block.mT()));
  }
  for (int64_t start = 0; start < right.size(1); start += kBlock) {
    const int64_t width = std::min(kBlock, right.size(1) - start), below = right.size(1) - start;
    const auto block = at::tril(second().narrow(0, start, below).narrow(1, start, width)).to(at::kDouble);
    product.narrow(1, split() + start, width).copy_(at::matmul(right.narrow(1, start, below), block));
  }
  return product;
}

std::optional<CholeskyFactor> CholeskyFactor::updated(const at::Tensor& rows) const {
  if (device().is_cpu()) {
    const CholeskyFactor factor(corners_.clone(), side_.clone());
    cpu::cholesky_update(factor.corners_.mutable_data_ptr<double>(), factor.side_.mutable_data_ptr<double>(),
                         rows.contiguous().const_data_ptr<double>(), size(), rows.size(0));
    return factor;
  }
#ifdef EMMET_CUDA
  if (device().is_cuda()) {
    const c10::DeviceGuard guard(device());
    const auto stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device());
    const auto upper = lower().mT().contiguous();  // row-major Lᵀ is column-major L
    const auto vectors = rows.mT().clone(at::MemoryFormat::Contiguous), diagonal = upper.diagonal().contiguous();
    cuda::cholesky_update(upper.mutable_data_ptr<double>(), vectors.mutable_data_ptr<double>(),
                          diagonal.const_data_ptr<double>(), size(), rows.size(0), stream.native_handle());
    return from_upper(upper);
  }
#endif
  return std::nullopt;
}

at::Tensor CholeskyFactor::lower() const {
  const int64_t rest = size() - split();
  const auto square = at::zeros({size(), size()}, corners_.options());
  square.narrow(0, 0, split()).narrow(1, 0, split()).copy_(at::triu(first()).mT());
  square.narrow(0, split(), rest).narrow(1, 0, split()).copy_(side_);
  square.narrow(0, split(), rest).narrow(1, split(), rest).copy_(at::tril(second()));
  return square;
}

at::Tensor CholeskyFactor::diagonal() const { return at::cat({first().diagonal(), second().diagonal()}); }

CholeskyFactor CholeskyFactor::to(const at::TensorOptions& options) const {
  return {corners_.to(options), side_.to(options)};
}

}  // namespace emmet
