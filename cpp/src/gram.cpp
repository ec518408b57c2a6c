#include "gram.h"

#include <ATen/Context.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "linear.h"

namespace emmet {
namespace {

// Columns of one block row: near 2x fewer flops, products still wide. A GPU needs larger ones to be busy.
constexpr int64_t kBlock = 256;
constexpr int64_t kBlockOnGpu = 1024;

}  // namespace

void add_gram(const at::Tensor& total, const at::Tensor& rows, at::ScalarType dtype, double scale) {
  // Either would drop digits of float32 keys; in autocast to float16, sums of squares would overflow.
  const at::NoTF32Guard no_tf32;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const int64_t dim = rows.size(1), block = rows.is_cpu() ? kBlock : kBlockOnGpu;
  const bool by_onednn = rows.is_cpu() && dtype == at::kFloat && prefers_onednn();
  const at::Tensor columns = by_onednn ? rows.t().contiguous() : rows.t();  // a copy, whose blocks have no gaps
  for (int64_t start = 0; start < dim; start += block) {
    const int64_t height = std::min(block, dim - start), width = dim - start;
    const at::Tensor left = columns.narrow(0, start, height), right = columns.narrow(0, start, width);
    const at::Tensor tile = by_onednn                     ? linear(left, right)
                            : rows.scalar_type() == dtype ? at::mm(left, right.t())
                                                          : at::mm(left, right.t(), dtype);
    total.narrow(0, start, height).narrow(1, start, width).add_(tile, scale);
  }
}

void mirror_upper_(const at::Tensor& matrix) {
  const int64_t dim = matrix.size(0);
  for (int64_t start = 0; start < dim; start += kBlock) {
    const int64_t height = std::min(kBlock, dim - start), right = start + height;
    const at::Tensor rows = matrix.narrow(0, start, height), block = rows.narrow(1, start, height);
    block.copy_(at::triu(block).add_(at::triu(block, 1).t()));
    matrix.narrow(0, right, dim - right).narrow(1, start, height).copy_(rows.narrow(1, right, dim - right).t());
  }
}

at::Tensor gram_matrix(const at::Tensor& rows) {
  const at::Tensor gram = at::zeros({rows.size(1), rows.size(1)}, rows.options());
  add_gram(gram, rows, at::kDouble);
  mirror_upper_(gram);
  return gram;
}

}  // namespace emmet
