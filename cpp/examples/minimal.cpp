// Teaches a linear memory one new association.
//
//   minimal [METRIC]    METRIC is a file that Preservation.save wrote; without it, that of random keys is made

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <emmet/covariance.h>
#include <emmet/preservation.h>
#include <emmet/solve.h>

#include <exception>
#include <iostream>

emmet::Preservation random_metric(int64_t dim) {
  emmet::Covariance covariance(dim);
  covariance.add(at::randn({10 * dim, dim}));
  return emmet::Preservation::from_second_moment(covariance.second_moment());
}

int main(int argc, char** argv) try {
  const auto metric = argc > 1 ? emmet::Preservation::load(argv[1]) : random_metric(256);
  const auto weight = at::randn({64, metric.dim()});  // [d_out, d_in]
  const auto key = at::randn({1, metric.dim()}), value = at::randn({1, 64});

  const auto update = emmet::solve(metric, key, /*residuals=*/value - at::linear(key, weight));
  update.apply_(weight);

  const auto error = (at::linear(key, weight) - value).norm() / value.norm();
  std::cout << "the key now gives its value to " << error.item<double>() << " (relative)\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
