#include "emmet/update.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "checks.h"
#include "emmet/error.h"
#include "emmet/safetensors.h"
#include "typed_file.h"

namespace emmet {
namespace {

constexpr const char* kFormat = "emmet.update.1";
// Rows of a weight that are formed in float64 at a time.
constexpr int64_t kBlockRows = 512;

// One name for each number of Diagnostics, in files.
constexpr std::pair<const char*, double Diagnostics::*> kDiagnostics[] = {
    {"condition", &Diagnostics::condition},
    {"ridge", &Diagnostics::ridge},
    {"constraint_residual", &Diagnostics::constraint_residual},
    {"preservation_cost", &Diagnostics::preservation_cost},
    {"seconds_whiten", &Diagnostics::seconds_whiten},
    {"seconds_system", &Diagnostics::seconds_system},
};

void require_matrix(const at::Tensor& tensor, const char* name) {
  require_floating(tensor, name);
  if (tensor.dim() != 2) {
    throw ShapeError(c10::str("expected ", name, " with two dimensions, got ", tensor.sizes(), "; pass a matrix"));
  }
  require_finite_rows(tensor, name);
}

}  // namespace

Update Update::from_factors(at::Tensor left, at::Tensor right, Diagnostics diagnostics) {
  const at::NoGradGuard no_grad;
  require_matrix(left, "left");
  require_matrix(right, "right");
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
