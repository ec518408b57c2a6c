#include "emmet/covariance.h"

#include <ATen/Context.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "emmet/error.h"
#include "float32_products.h"
#include "gram.h"

namespace emmet {
namespace {

constexpr int64_t kRowsPerFlush = 4096;  // float32 sums over more rows would begin to lose digits

/// Rows that `mask` [...] selects of keys [..., d], as a boolean [n]; throws ShapeError when the mask does not fit.
at::Tensor selected_rows(const at::Tensor& keys, const at::Tensor& mask) {
  if (!mask.defined() || !at::isIntegralType(mask.scalar_type(), /*includeBool=*/true)) {
    throw ShapeError(c10::str("expected a mask of booleans or integers, got ",
                              mask.defined() ? at::toString(mask.scalar_type()) : "none",
                              "; pass ones where keys count and zeros elsewhere"));
  }
  const at::IntArrayRef expected = keys.sizes().slice(0, static_cast<size_t>(keys.dim()) - 1);
  if (mask.sizes() != expected) {
    throw ShapeError(c10::str("expected a mask ", expected, ", got ", mask.sizes(), "; it has one entry for each key"));
  }
  require_device(mask, keys.device(), "mask");
  return mask.reshape(-1).ne(0);
}

/// The dtype in which sums over kRowsPerFlush products neither overflow nor underflow nor lose digits that keys have.
at::ScalarType product_dtype(const at::Tensor& rows, double largest) {
  if (rows.scalar_type() == at::kDouble || (rows.is_cpu() && rounds_float32_products())) {
    return at::kDouble;
  }
  using Float = std::numeric_limits<float>;
  const double square = largest * largest;
  const bool overflows = square * kRowsPerFlush > Float::max();
  const bool underflows = square > 0 && square < Float::min() / Float::epsilon();  // what is an epsilon of it, too
  return overflows || underflows ? at::kDouble : at::kFloat;
}

/// Whether products of rows as they are can be summed in float32: cuBLAS does so with half precision. It may sum those
/// of float16 in float16 where torch's user has allowed that.
bool sums_halves_in_float32(const at::Tensor& rows) {
  return rows.is_cuda() && (rows.scalar_type() == at::kBFloat16 ||
                            (rows.scalar_type() == at::kHalf && !at::globalContext().allowFP16AccumulationCuBLAS()));
}

}  // namespace

Covariance::Covariance(int64_t dim, c10::Device device) {
  if (dim <= 0) {
    throw ShapeError(c10::str("expected a positive width of keys, got ", dim, "; pass the input width of the layer"));
  }
  total_ = at::zeros({dim, dim}, at::TensorOptions(device).dtype(at::kDouble));
}

Covariance Covariance::from_sum(const at::Tensor& sum, int64_t count) {
  const c10::InferenceMode inference;
  require_symmetric(sum, "sum", "Covariance.sum()");
  if (count < 0 || (count == 0 && largest_magnitude(sum) > 0)) {
    throw Error(c10::str("expected the number of keys behind the sum, got ", count, "; pass what count() gave"));
  }
  Covariance moment(sum.size(0), sum.device());
  moment.total_.copy_(sum);
  moment.count_ = count;
  return moment;
}

void Covariance::add(const at::Tensor& keys, const std::optional<at::Tensor>& mask) {
  const c10::InferenceMode inference;  // no graph, and the total may have been made in this mode or outside it
  require_whole();
  require_floating(keys, "keys");
  require_width(keys, dim(), "keys");
  require_device(keys, device(), "keys");
  at::Tensor rows = keys.reshape({-1, dim()});
  std::optional<at::Tensor> selected;
  if (mask) {
    selected = selected_rows(keys, *mask);
  }
  require_finite_rows(rows, "keys", selected);
  if (selected && !selected->all().item<bool>()) {
    rows = rows.index_select(0, at::nonzero(*selected).squeeze(1));
  }

  const double largest = largest_magnitude(rows);
  if (!std::isfinite(largest * largest * static_cast<double>(rows.size(0)))) {
    throw NonFiniteError(c10::str("expected keys whose squares add up within the range of float64, got one of ",
                                  largest, "; scale the keys"));
  }
  if (total_.use_count() > 1) {  // shared with a copy of this object, which must not change
    total_ = total_.clone();
  }
  const at::ScalarType dtype = product_dtype(rows, largest);
  is_whole_ = false;  // should memory run out midway
  const bool as_they_are = dtype == at::kFloat && sums_halves_in_float32(rows);
  for (int64_t start = 0; start < rows.size(0); start += kRowsPerFlush) {
    const at::Tensor chunk = rows.narrow(0, start, std::min(kRowsPerFlush, rows.size(0) - start));
    add_gram(total_, (as_they_are ? chunk : chunk.to(dtype)).contiguous(), dtype);
  }
  count_ += rows.size(0);
  is_whole_ = true;
}

void Covariance::merge(const Covariance& other) {
  if (other.dim() != dim()) {
    throw ShapeError(c10::str("expected a moment of keys of width ", dim(), ", got ", other.dim(),
                              "; merge moments of one layer only"));
  }
  require_whole();
  other.require_whole();
  total_ = total_.add(other.total_.to(device()));
  count_ += other.count_;
}

at::Tensor Covariance::sum() const {
  require_whole();
  at::Tensor symmetric = total_.clone();
  mirror_upper_(symmetric);
  return symmetric;
}

at::Tensor Covariance::second_moment() const {
  if (count_ == 0) {
    throw Error("expected a moment of at least one key, got none; add keys first");
  }
  return sum().div_(count_);
}

void Covariance::require_whole() const {
  if (!is_whole_) {
    throw Error(
        "expected a moment that an error has not interrupted, got one with some of the keys of a failed add();"
        " begin anew, or with what sum() gave before");
  }
}

}  // namespace emmet
