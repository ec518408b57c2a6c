#include "typed_file.h"

#include <c10/util/StringUtil.h>

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "checks.h"
#include "emmet/error.h"

namespace emmet {

std::string exact_text(double value) {
  std::array<char, 32> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

TypedFile::TypedFile(std::string path, const std::string& format)
    : path_(std::move(path)), contents_(read_safetensors(path_)) {
  const auto found = contents_.metadata.find("format");
  if (found == contents_.metadata.end() || found->second != format) {
    throw FormatError(c10::str(path_, ": expected a file of format ", format, ", got ",
                               found == contents_.metadata.end() ? "none" : found->second,
                               "; give a file that save() of this version wrote"));
  }
}

const at::Tensor& TypedFile::matrix(const std::string& name) const {
  const auto found = contents_.tensors.find(name);
  if (found == contents_.tensors.end() || found->second.dim() != 2 || found->second.scalar_type() != at::kDouble) {
    throw FormatError(c10::str(
        path_, ": expected a float64 matrix '", name, "', got ",
        found == contents_.tensors.end() ? "none" : c10::str(found->second.scalar_type(), " ", found->second.sizes()),
        "; save it anew"));
  }
  if (found->second.numel() == 0) {
    throw FormatError(c10::str(path_, ": expected entries in the matrix '", name, "', got the shape ",
                               found->second.sizes(), "; save it anew"));
  }
  if (!std::isfinite(largest_magnitude(found->second))) {
    throw FormatError(c10::str(path_, ": expected finite numbers in '", name, "', got NaN or Inf; save it anew"));
  }
  return found->second;
}

double TypedFile::number(const std::string& name) const {
  const auto found = contents_.metadata.find(name);
  const std::string text = found == contents_.metadata.end() ? "" : found->second;
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw FormatError(
        c10::str(path_, ": expected a number '", name, "' in its metadata, got '", text, "'; save it anew"));
  }
  return value;
}

}  // namespace emmet
