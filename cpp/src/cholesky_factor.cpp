#include "cholesky_factor.h"

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/geqrf.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ormqr.h>
#include <ATen/ops/tril.h>
#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "cpu/cholesky_update.h"
#include "cpu/triangular_solve.h"
#include "float32_products.h"
#include "gram.h"
#include "system.h"

#ifdef EMMET_CUDA
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cuda/cholesky_update.h"
#endif

namespace emmet {
namespace {

// A pivot this small relative to its diagonal entry is rounding error, not information.
constexpr double kSmallestPivot = 1e-13;
// Rows that are solved for at a time, which are copied for it, and columns that are multiplied.
constexpr int64_t kBlock = 1024;
constexpr int64_t kBlockOnGpu = 8192;
// So many rows at most are quicker to rotate into a factor one by one, in one pass over it, than to reflect together.
constexpr int64_t kFewRows = 32;
// Columns that are reflected together.
constexpr int64_t kPanel = 256;

// Solves T x = r, in place, for each row r of a contiguous array. T is a triangle of a square that lies in memory
// without gaps, by rows or by columns, so that no copy is made of either.
void solve_rows_(const at::Tensor& rows, const at::Tensor& triangle, bool upper) {
  auto columns = rows.mT();
  at::linalg_solve_triangular_out(columns, triangle, columns, upper);
}

// rows -= some · matrix.
void subtract_product_(const at::Tensor& rows, const at::Tensor& some, const at::Tensor& matrix) {
  if (rows.is_cpu() && rows.scalar_type() == at::kFloat && rounds_float32_products()) {
    rows.sub_(at::mm(some.to(at::kDouble), matrix.to(at::kDouble)));
  } else {
    rows.addmm_(some, matrix, 1, -1);
  }
}

// Replaces an upper triangle U by that of the QR factorisation of [U; rows], with a positive diagonal: by Householder
// reflections of a panel of columns at a time, which leave the zeros of U alone. The rows are lost.
void reflect_(const at::Tensor& upper, const at::Tensor& rows) {
  for (int64_t start = 0; start < upper.size(0); start += kPanel) {
    const int64_t width = std::min(kPanel, upper.size(0) - start), after = upper.size(0) - start - width;
    const auto top = upper.narrow(0, start, width);
    const auto stacked = [&](int64_t column, int64_t columns) {
      return at::cat({top.narrow(1, column, columns), rows.narrow(1, column, columns)});
    };
    const auto [reflectors, scales] = at::geqrf(stacked(start, width));
    top.narrow(1, start, width).copy_(at::triu(reflectors.narrow(0, 0, width)));
    if (after > 0) {
      const auto rest = at::ormqr(reflectors, scales, stacked(start + width, after), /*left=*/true, /*transpose=*/true);
      top.narrow(1, start + width, after).copy_(rest.narrow(0, 0, width));
      rows.narrow(1, start + width, after).copy_(rest.narrow(0, width, rows.size(0)));
    }
  }
  upper.mul_(upper.diagonal().sign().unsqueeze(1));
}

}  // namespace

CholeskyFactor::CholeskyFactor(at::Tensor corners, at::Tensor side)
    : corners_(std::move(corners)), side_(std::move(side)) {}

std::optional<CholeskyFactor> CholeskyFactor::from_parts(const at::Tensor& corners, const at::Tensor& side) {
  const int64_t rest = side.size(0), split = side.size(1);
  if (rest == 0 || (rest != split && rest != split + 1)) return std::nullopt;
  if (corners.sizes() != at::IntArrayRef({rest + 1, rest})) return std::nullopt;
  const CholeskyFactor factor(corners.contiguous(), side.contiguous());
  const auto ends = factor.upper_first().diagonal().gt(0).all();  // the 1 of an odd size, too
  if (!ends.logical_and(factor.diagonal().gt(0).all()).item<bool>()) return std::nullopt;
  return factor;
}

at::Tensor CholeskyFactor::upper_first() const { return corners_.narrow(0, 0, rest()); }

at::Tensor CholeskyFactor::lower_second() const { return corners_.narrow(0, 1, rest()); }

std::optional<CholeskyFactor> CholeskyFactor::of(const at::Tensor& matrix, double shift) {
  const int64_t size = matrix.size(0), split = size / 2, rest = size - split;
  const auto above = matrix.narrow(0, 0, split).narrow(1, split, rest);
  const CholeskyFactor factor(at::zeros({rest + 1, rest}, matrix.options()),
                              at::empty({rest, split}, matrix.options()).copy_(above.mT()));
  const auto shifted = [&](int64_t start, int64_t count) {
    const auto square = at::empty({count, count}, matrix.options());
    square.copy_(matrix.narrow(0, start, count).narrow(1, start, count)).diagonal().add_(shift);
    return square;
  };
  // Both triangles are added to the zeros of one array: to copy one there would overwrite the other.
  if (split > 0) {
    const auto square = shifted(0, split);
    if (!factorise_(square.mT())) return std::nullopt;  // stored by columns, it is L₁ now; by rows, L₁ᵀ
    solve_rows_(factor.side_, square.mT(), /*upper=*/false);
    factor.upper_first().narrow(0, 0, split).narrow(1, 0, split).add_(square);
  }
  if (rest > split) factor.upper_first()[split][split] = 1.0;
  const auto square = shifted(split, rest);
  add_gram(square, factor.side_.mT(), at::kDouble, -1.0);
  if (!factorise_(square.mT())) return std::nullopt;
  factor.lower_second().add_(square.mT());

  const auto pivots = factor.diagonal().square() / (matrix.diagonal() + shift);
  if (!(pivots.min().item<double>() >= kSmallestPivot)) return std::nullopt;
  return factor;
}

CholeskyFactor CholeskyFactor::from_upper(const at::Tensor& upper) {
  const int64_t size = upper.size(0), split = size / 2, rest = size - split;
  const auto top = upper.narrow(0, 0, split);
  const CholeskyFactor factor(at::zeros({rest + 1, rest}, upper.options()),
                              top.narrow(1, split, rest).mT().contiguous());
  factor.upper_first().narrow(0, 0, split).narrow(1, 0, split).add_(at::triu(top.narrow(1, 0, split)));
  if (rest > split) factor.upper_first()[split][split] = 1.0;
  factor.lower_second().add_(at::triu(upper.narrow(0, split, rest).narrow(1, split, rest)).mT());
  return factor;
}

template <typename Change>
void CholeskyFactor::change_halves_(const at::Tensor& rows, const Change& change) const {
  const at::NoTF32Guard no_tf32;
  const auto options = rows.options().dtype(dtype());
  const int64_t block = rows.is_cpu() ? kBlock : kBlockOnGpu;
  for (int64_t row = 0; row < rows.size(0); row += block) {
    const int64_t count = std::min(block, rows.size(0) - row);
    const auto some = rows.narrow(0, row, count);
    const auto left = at::zeros({count, rest()}, options), right = at::empty({count, rest()}, options);
    left.narrow(1, 0, split()).copy_(some.narrow(1, 0, split()));
    right.copy_(some.narrow(1, split(), rest()));
    change(left, right);
    some.narrow(1, 0, split()).copy_(left.narrow(1, 0, split()));
    some.narrow(1, split(), rest()).copy_(right);
  }
}

void CholeskyFactor::solve_one_(const at::Tensor& row, bool transposed) const {
  const auto vector = row.to(dtype()).contiguous();
  AT_DISPATCH_FLOATING_TYPES(dtype(), "triangular_solve", [&] {
    cpu::triangular_solve(corners_.const_data_ptr<scalar_t>(), side_.const_data_ptr<scalar_t>(),
                          vector.mutable_data_ptr<scalar_t>(), size(), transposed);
  });
  if (!vector.is_same(row)) row.copy_(vector);
}

void CholeskyFactor::solve_(const at::Tensor& rows) const {
  if (rows.is_cpu() && rows.size(0) == 1) return solve_one_(rows, /*transposed=*/false);
  change_halves_(rows, [&](const at::Tensor& left, const at::Tensor& right) {
    solve_rows_(left, upper_first().mT(), /*upper=*/false);
    subtract_product_(right, left.narrow(1, 0, split()), side_.mT());
    solve_rows_(right, lower_second(), /*upper=*/false);
  });
}

void CholeskyFactor::solve_transposed_(const at::Tensor& rows) const {
  if (rows.is_cpu() && rows.size(0) == 1) return solve_one_(rows, /*transposed=*/true);
  change_halves_(rows, [&](const at::Tensor& left, const at::Tensor& right) {
    solve_rows_(right, lower_second().mT(), /*upper=*/true);
    subtract_product_(left.narrow(1, 0, split()), right, side_);
    solve_rows_(left, upper_first(), /*upper=*/true);
  });
}

at::Tensor CholeskyFactor::multiplied(const at::Tensor& rows) const {
  const auto left = rows.narrow(1, 0, split()), right = rows.narrow(1, split(), rest());
  const auto product = at::empty_like(rows);
  product.narrow(1, 0, split()).copy_(at::matmul(right, side_.to(at::kDouble)));
  for (int64_t start = 0; start < split(); start += kBlock) {
    const int64_t width = std::min(kBlock, split() - start), below = split() - start;
    const auto block = at::triu(upper_first().narrow(0, start, width).narrow(1, start, below)).to(at::kDouble);
    product.narrow(1, start, width).add_(at::matmul(left.narrow(1, start, below), block.mT()));
  }
  for (int64_t start = 0; start < rest(); start += kBlock) {
    const int64_t width = std::min(kBlock, rest() - start), below = rest() - start;
    const auto block = at::tril(lower_second().narrow(0, start, below).narrow(1, start, width)).to(at::kDouble);
    product.narrow(1, split() + start, width).copy_(at::matmul(right.narrow(1, start, below), block));
  }
  return product;
}

CholeskyFactor CholeskyFactor::updated(const at::Tensor& rows, double weight) const {
  const double scale = std::sqrt(weight);
  if (rows.size(0) <= kFewRows) {
    const auto scaled = scale * rows;
    if (device().is_cpu()) {
      const CholeskyFactor factor(corners_.clone(), side_.clone());
      cpu::cholesky_update(factor.corners_.mutable_data_ptr<double>(), factor.side_.mutable_data_ptr<double>(),
                           scaled.contiguous().const_data_ptr<double>(), size(), rows.size(0));
      return factor;
    }
#ifdef EMMET_CUDA
    if (device().is_cuda()) {
      const c10::DeviceGuard guard(device());
      const auto stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device());
      const auto square = upper();  // by rows it is Lᵀ, by columns L
      const auto vectors = scaled.mT().contiguous(), before = square.diagonal().contiguous();
      cuda::cholesky_update(square.mutable_data_ptr<double>(), vectors.mutable_data_ptr<double>(),
                            before.const_data_ptr<double>(), size(), rows.size(0), stream.native_handle());
      return from_upper(square);
    }
#endif
  }
  const auto square = upper();
  for (int64_t row = 0; row < rows.size(0); row += kBlock) {
    reflect_(square, scale * rows.narrow(0, row, std::min(kBlock, rows.size(0) - row)));
  }
  return from_upper(square);
}

at::Tensor CholeskyFactor::upper() const {
  const auto square = at::zeros({size(), size()}, corners_.options());
  const auto top = square.narrow(0, 0, split());
  top.narrow(1, 0, split()).copy_(at::triu(upper_first().narrow(0, 0, split()).narrow(1, 0, split())));
  top.narrow(1, split(), rest()).copy_(side_.mT());
  square.narrow(0, split(), rest()).narrow(1, split(), rest()).copy_(at::tril(lower_second()).mT());
  return square;
}

at::Tensor CholeskyFactor::diagonal() const {
  return at::cat({upper_first().diagonal().narrow(0, 0, split()), lower_second().diagonal()});
}

CholeskyFactor CholeskyFactor::to(const at::TensorOptions& options) const {
  return {corners_.to(options), side_.to(options)};
}

}  // namespace emmet
