#include "emmet/update.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/matmul.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "checks.h"
#include "emmet/error.h"
#include "emmet/preservation.h"
#include "emmet/safetensors.h"
#include "typed_file.h"

namespace emmet {
namespace {

constexpr const char* kFormat = "emmet.update.1";
// Rows of a weight that are formed in float64 at a time.
constexpr int64_t kBlockRows = 512;
// How much of an update may lie outside of a null space, relative to all of it: what rounding leaves there.
constexpr double kOutside = 1e-6;

// One name for each number of Diagnostics that files keep. Times are not among them: the same edit is the same bytes.
constexpr std::pair<const char*, double Diagnostics::*> kDiagnostics[] = {
    {"condition", &Diagnostics::condition},
    {"ridge", &Diagnostics::ridge},
    {"constraint_residual", &Diagnostics::constraint_residual},
    {"preservation_cost", &Diagnostics::preservation_cost},
};

void require_matrix(const at::Tensor& tensor, const char* name) {
  require_floating(tensor, name);
  if (tensor.dim() != 2 || tensor.numel() == 0) {
    throw ShapeError(c10::str("expected ", name, " with two dimensions, neither of size 0, got ", tensor.sizes(),
                              "; pass a matrix with entries"));
  }
}

// The singular value decomposition Δ L = U diag(σ) Vᵀ, where C = L Lᵀ.
struct WeighedSvd {
  at::Tensor left;    // U [d_out, r]
  at::Tensor values;  // σ [r], descending
  at::Tensor right;   // Vᵀ [r, rank of the metric]
};

// That of low-rank factors never multiplies them out.
WeighedSvd weighed_svd(const Update& update, const Preservation& preservation) {
  if (!update.is_low_rank()) {
    const auto dense = update.dense().to(preservation.device());
    const auto [left, values, right] = at::linalg_svd(preservation.disturbance(dense), false);
    return {left, values, right};
  }
  const auto [left_basis, left_core] = at::linalg_qr(update.left().to(preservation.device()));
  const auto right = update.right().to(preservation.device());
  const auto [right_basis, right_core] = at::linalg_qr(preservation.disturbance(right).mT());
  const auto [U, values, V] = at::linalg_svd(at::matmul(left_core, right_core.mT()), false);
  return {at::matmul(left_basis, U), values, at::matmul(V, right_basis.mT())};
}

// The first `rank` terms of the decomposition, times L⁻¹. Row i of right and column i of left share the scale √σᵢ.
Update truncated(const WeighedSvd& svd, const Preservation& preservation, int64_t rank,
                 const Diagnostics& diagnostics) {
  const auto roots = svd.values.narrow(0, 0, rank).sqrt();
  const auto right = preservation.unwhiten(roots.unsqueeze(1) * svd.right.narrow(0, 0, rank));
  return Update::from_factors(svd.left.narrow(1, 0, rank) * roots, right, diagnostics);
}

// The least number of singular values, at least one, without which at most a share of `tolerance` is lost.
int64_t rank_within(const at::Tensor& values, double tolerance) {
  const auto squares = values.square().cpu().contiguous();
  const auto* square = squares.const_data_ptr<double>();
  const double bound = tolerance * tolerance * squares.sum().item<double>();
  int64_t rank = squares.numel();
  for (double lost = 0.0; rank > 1 && lost + square[rank - 1] <= bound; --rank) lost += square[rank - 1];
  return rank;
}

// A metric that confines keys to a null space gives the rest of an update no weight, and would drop it silently.
void require_inside(const Update& update, const Preservation& preservation) {
  if (preservation.rank() == preservation.dim()) return;
  at::Tensor rows;  // R · right has the norms of Δ where left is Q · R
  if (update.is_low_rank()) {
    rows = at::matmul(std::get<1>(at::linalg_qr(update.left(), "r")), update.right());
  } else {
    rows = update.dense();
  }
  rows = rows.to(preservation.device());
  const auto inside = preservation.unwhiten(preservation.disturbance(rows));  // Δ Q L · L⁻¹Qᵀ
  if (relative_norm(rows - inside, rows) > kOutside) {
    throw Error(
        "expected an update inside the null space of the metric, got one that leaves it; "
        "compress in the metric of the second moment, Preservation::from_second_moment");
  }
}

}  // namespace

Update Update::from_factors(at::Tensor left, at::Tensor right, Diagnostics diagnostics) {
  const at::NoGradGuard no_grad;
  require_matrix(left, "left");
  require_matrix(right, "right");
  require_device(right, left.device(), "right");
  require_finite_rows(left, "left");
  require_finite_rows(right, "right");
  if (left.size(1) != right.size(0)) {
    throw ShapeError(c10::str("expected left [d_out, r] and right [r, d_in], got ", left.sizes(), " and ",
                              right.sizes(), "; their inner sizes must agree"));
  }
  const int64_t rows = left.size(0), columns = right.size(1), rank = left.size(1);
  left = left.detach().to(at::kDouble);
  right = right.detach().to(at::kDouble);
  if (rank * (rows + columns) >= rows * columns) return from_dense(at::matmul(left, right), diagnostics);
  Update update;
  update.left_ = std::move(left);
  update.right_ = std::move(right);
  update.diagnostics_ = diagnostics;
  return update;
}

Update Update::from_dense(at::Tensor dense, Diagnostics diagnostics) {
  require_matrix(dense, "dense");
  require_finite_rows(dense, "dense");
  Update update;
  update.dense_ = dense.detach().to(at::kDouble);
  update.diagnostics_ = diagnostics;
  return update;
}

const at::Tensor& Update::left() const {
  if (!is_low_rank()) throw Error("expected a low-rank update, got a dense one; use dense()");
  return left_;
}

const at::Tensor& Update::right() const {
  if (!is_low_rank()) throw Error("expected a low-rank update, got a dense one; use dense()");
  return right_;
}

at::Tensor Update::dense() const {
  const at::NoGradGuard no_grad;
  return is_low_rank() ? at::matmul(left_, right_) : dense_.clone();
}

c10::Device Update::device() const { return (is_low_rank() ? left_ : dense_).device(); }

int64_t Update::rows() const noexcept { return is_low_rank() ? left_.size(0) : dense_.size(0); }

int64_t Update::columns() const noexcept { return is_low_rank() ? right_.size(1) : dense_.size(1); }

int64_t Update::rank() const noexcept { return is_low_rank() ? left_.size(1) : std::min(rows(), columns()); }

void Update::apply_(at::Tensor weight, bool transposed) const {
  const at::NoGradGuard no_grad;
  require_floating(weight, "weight");
  const auto target = transposed && weight.dim() == 2 ? weight.t() : weight;
  if (target.dim() != 2 || target.size(0) != rows() || target.size(1) != columns()) {
    throw ShapeError(c10::str("expected weight ", transposed ? "[d_in, d_out]" : "[d_out, d_in]",
                              " of an update with d_out ", rows(), " and d_in ", columns(), ", got ", weight.sizes(),
                              "; check the layer and `transposed` (true for GPT-2's Conv1D)"));
  }
  const Update here = to(weight.device());
  // All sums are formed and checked before the first one is written.
  const auto sum = at::empty_like(target);
  for (int64_t row = 0; row < rows(); row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, rows() - row);
    const auto block = target.narrow(0, row, count).to(at::kDouble, /*non_blocking=*/false, /*copy=*/true);
    if (is_low_rank()) {
      block.addmm_(here.left_.narrow(0, row, count), here.right_);
    } else {
      block.add_(here.dense_.narrow(0, row, count));
    }
    sum.narrow(0, row, count).copy_(block);
  }
  if (!std::isfinite(largest_magnitude(sum))) {
    throw NonFiniteError(
        "expected a finite weight after the update, got NaN or Inf; check the weight, or use a larger ridge");
  }
  target.copy_(sum);
}

Update Update::compress_to_rank(const Preservation& preservation, int64_t rank) const {
  const at::NoGradGuard no_grad;
  if (rank < 1) {
    throw Error(c10::str("expected a rank of at least 1, got ", rank, "; undo an edit instead to be rid of it"));
  }
  require_inside(*this, preservation);
  const auto svd = weighed_svd(*this, preservation);
  return truncated(svd, preservation, std::min(rank, svd.values.numel()), diagnostics_);
}

Update Update::compress_to_tolerance(const Preservation& preservation, double tolerance) const {
  const at::NoGradGuard no_grad;
  if (!(tolerance >= 0 && tolerance < 1)) {
    throw Error(c10::str("expected a tolerance from 0 to below 1, got ", tolerance, "; 0.01 loses one per cent"));
  }
  require_inside(*this, preservation);
  const auto svd = weighed_svd(*this, preservation);
  return truncated(svd, preservation, rank_within(svd.values, tolerance), diagnostics_);
}

double Update::constraint_residual(const at::Tensor& keys, const at::Tensor& residuals) const {
  const at::NoGradGuard no_grad;
  const auto K = as_rows(keys, columns(), device(), "keys"), R = as_rows(residuals, rows(), device(), "residuals");
  require_same_count(K, R);
  const auto effect = is_low_rank() ? at::matmul(at::matmul(K, right_.mT()), left_.mT()) : at::matmul(K, dense_.mT());
  return relative_norm(effect - R, R);
}

Update Update::to(c10::Device device) const {
  Update moved = *this;
  for (auto* tensor : {&moved.left_, &moved.right_, &moved.dense_}) {
    if (tensor->defined()) *tensor = tensor->to(device);
  }
  return moved;
}

void Update::save(const std::string& path) const {
  TensorFile file;
  if (is_low_rank()) {
    file.tensors = {{"left", left_}, {"right", right_}};
  } else {
    file.tensors = {{"dense", dense_}};
  }
  file.metadata["format"] = kFormat;
  for (const auto& [name, field] : kDiagnostics) file.metadata[name] = exact_text(diagnostics_.*field);
  write_safetensors(path, file);
}

Update Update::load(const std::string& path) {
  const TypedFile file(path, kFormat);
  Diagnostics diagnostics;
  for (const auto& [name, field] : kDiagnostics) diagnostics.*field = file.number(name);
  if (file.has("dense")) return from_dense(file.matrix("dense"), diagnostics);
  const auto &left = file.matrix("left"), &right = file.matrix("right");
  if (left.size(1) != right.size(0)) {
    throw FormatError(c10::str(path, ": expected 'left' [d_out, r] and 'right' [r, d_in], got ", left.sizes(), " and ",
                               right.sizes(), "; save it anew"));
  }
  return from_factors(left, right, diagnostics);
}

}  // namespace emmet
