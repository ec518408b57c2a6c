#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "emmet/safetensors.h"

namespace emmet {

/// A number as text that reads back to the same bits.
std::string exact_text(double value);

/// A safetensors file whose metadata says that it is of `format` ("emmet.<kind>.<version>").
class TypedFile {
 public:
  /// Reads `path`; throws FormatError when it is of another format.
  TypedFile(std::string path, const std::string& format);

  bool has(const std::string& name) const { return contents_.tensors.count(name) > 0; }
  /// A finite float64 matrix; throws FormatError when it is missing or something else.
  const at::Tensor& matrix(const std::string& name) const;
  /// A number of the metadata; throws FormatError when it is missing or something else.
  double number(const std::string& name) const;

 private:
  std::string path_;
  TensorFile contents_;
};

}  // namespace emmet
