#include "cpu/cholesky_update.h"

#include <Eigen/Core>
#include <Eigen/Jacobi>

namespace emmet::cpu {

void cholesky_update(double* factor, const double* vectors, int64_t dim, int64_t count) {
  Eigen::Map<Eigen::MatrixXd> L(factor, dim, dim);
  Eigen::MatrixXd work(dim, 1 + count);  // the column of L at hand, and what is left of each vector
  work.rightCols(count) = Eigen::Map<const Eigen::MatrixXd>(vectors, dim, count);

  // All vectors are rotated into a column before the next one, so that the factor is read from memory once.
  for (int64_t j = 0; j < dim; ++j) {
    auto rows = work.bottomRows(dim - j);
    rows.col(0) = L.col(j).tail(dim - j);
    for (int64_t k = 1; k <= count; ++k) {
      Eigen::JacobiRotation<double> rotation;
      rotation.makeGivens(rows(0, 0), rows(0, k));
      rows.applyOnTheRight(0, k, rotation);
    }
    L.col(j).tail(dim - j) = rows.col(0);
  }
}

}  // namespace emmet::cpu
