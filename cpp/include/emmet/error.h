#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace emmet {

/// Base of every error that emmet raises. A message says what was expected, what came and what to do.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// A tensor has the wrong shape, dtype or device.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// NaN or Inf where finite numbers are needed.
class NonFiniteError : public Error {
 public:
  using Error::Error;
};

/// The second moment has no Cholesky factor, as too few keys were seen, or it is not a second moment; its metric is too
/// ill-conditioned for a constraint; or a system is singular to working precision for all its ridge.
class NotPositiveDefiniteError : public Error {
 public:
  using Error::Error;
};

/// The equality constraint cannot be met: some keys coincide or are linearly dependent.
class DependentKeysError : public Error {
 public:
  DependentKeysError(const std::string& message, std::vector<std::vector<int64_t>> groups)
      : Error(message), groups_(std::move(groups)) {}

  /// Row indices, from 0, of the dependent keys, one group for each dependency that was found.
  const std::vector<std::vector<int64_t>>& groups() const noexcept { return groups_; }

 private:
  std::vector<std::vector<int64_t>> groups_;
};

/// A file is not what it should be: truncated, malformed or of another kind.
class FormatError : public Error {
 public:
  using Error::Error;
};

}  // namespace emmet
