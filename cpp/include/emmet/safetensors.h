#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace emmet {

/// The contents of a safetensors file: named CPU tensors and string metadata.
struct TensorFile {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Reads a safetensors file. Every offset and size of the header is checked against the file before it is used.
/// Throws FormatError for a malformed file and Error when it cannot be read.
TensorFile read_safetensors(const std::string& path);

/// Writes a safetensors file under a temporary name in the same folder, flushes and renames it.
/// Tensors may lie on any device; they are written contiguous. Throws Error when the file cannot be written.
void write_safetensors(const std::string& path, const TensorFile& contents);

}  // namespace emmet
