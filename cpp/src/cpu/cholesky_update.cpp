#include "cpu/cholesky_update.h"

#include <Eigen/Core>
#include <cmath>

namespace emmet::cpu {

void cholesky_update(double* factor, int64_t dim, double* vectors, int64_t count) {
  // All vectors pass through a column before the next one, so that the factor is read from memory once.
  for (int64_t j = 0; j < dim; ++j) {
    const int64_t below = dim - j - 1;
    Eigen::Map<Eigen::ArrayXd> column(factor + j * dim + j + 1, below);
    double& diagonal = factor[j * dim + j];
    for (int64_t k = 0; k < count; ++k) {
      double* vector = vectors + k * dim;
      if (vector[j] == 0.0) continue;
      const double rotated = std::hypot(diagonal, vector[j]);
      const double cosine = diagonal / rotated;
      const double sine = vector[j] / rotated;
      diagonal = rotated;
      Eigen::Map<Eigen::ArrayXd> rest(vector + j + 1, below);
      // The rotation of (column, rest); the second line takes the new column, hence the division by the cosine.
      column = cosine * column + sine * rest;
      rest = (rest - sine * column) / cosine;
    }
  }
}

}  // namespace emmet::cpu
