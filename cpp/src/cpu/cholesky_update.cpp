#include "cpu/cholesky_update.h"

#include <Eigen/Core>
#include <Eigen/Jacobi>
#include <algorithm>

namespace emmet::cpu {
namespace {

// Columns of B and of L₂, which lie by rows, that are brought together at a time: a cache line of numbers.
constexpr int64_t kColumns = 8;

}  // namespace

void cholesky_update(double* corners, double* side, const double* vectors, int64_t dim, int64_t count) {
  using ByRows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const int64_t split = dim / 2, rest = dim - split;
  Eigen::Map<ByRows> first(corners, rest, rest), below(side, rest, split), second(corners + rest, rest, rest);
  Eigen::MatrixXd work(dim, 1 + count);  // the column of L at hand, and what is left of each vector
  work.rightCols(count) = Eigen::Map<const Eigen::MatrixXd>(vectors, dim, count);

  for (int64_t start = 0, width = 0; start < dim; start += width) {
    const bool is_left = start < split;
    width = std::min(kColumns, (is_left ? split : dim) - start);
    auto lower =
        is_left ? below.block(0, start, rest, width) : second.block(start - split, start - split, dim - start, width);
    ByRows panel = lower;
    // All vectors are rotated into a column before the next one, so that the factor is read from memory once.
    for (int64_t j = start; j < start + width; ++j) {
      auto rows = work.bottomRows(dim - j);
      auto column = rows.col(0);
      const int64_t in_first = is_left ? split - j : 0;  // entries of the column in L₁
      auto tail = panel.col(j - start).tail(dim - j - in_first);
      if (is_left) column.head(in_first) = first.row(j).segment(j, in_first);
      column.tail(tail.size()) = tail;
      for (int64_t k = 1; k <= count; ++k) {
        Eigen::JacobiRotation<double> rotation;
        rotation.makeGivens(rows(0, 0), rows(0, k));
        rows.applyOnTheRight(0, k, rotation);
      }
      if (is_left) first.row(j).segment(j, in_first) = column.head(in_first);
      tail = column.tail(tail.size());
    }
    lower = panel;
  }
}

}  // namespace emmet::cpu
