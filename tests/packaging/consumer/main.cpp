// Edits a random memory with the installed emmet package. Prints ‖ΔK − R‖ / ‖R‖ and succeeds if the edit holds.

#include <ATen/ops/randn.h>
#include <emmet/covariance.h>
#include <emmet/preservation.h>
#include <emmet/solve.h>
#include <emmet/version.h>

#include <iostream>

int main() {
  emmet::Covariance covariance(16);
  covariance.add(at::randn({256, 16}));
  const auto preservation = emmet::Preservation::from_second_moment(covariance.second_moment());

  const auto keys = at::randn({4, 16}, at::kDouble);
  const auto residuals = at::randn({4, 8}, at::kDouble);
  const auto update = emmet::solve(preservation, keys, residuals);

  const auto error = keys.matmul(update.dense().mT()).sub(residuals);
  const auto relative = error.norm().item<double>() / residuals.norm().item<double>();
  std::cout << EMMET_VERSION << ' ' << relative << '\n';
  return relative < 1e-6 ? 0 : 1;
}
