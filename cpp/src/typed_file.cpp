#include "typed_file.h"

#include <c10/util/StringUtil.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "emmet/error.h"

namespace emmet {

std::string exact_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

TypedFile::TypedFile(std::string path, const std::string& format)
    : path_(std::move(path)), contents_(read_safetensors(path_)) {
  const auto found = contents_.metadata.find("format");
  if (found == contents_.metadata.end() || found->second != format) {
    throw FormatError(c10::str(path_, ": expected a file of format ", format, ", got ",
                               found == contents_.metadata.end() ? "none" : found->second,
                               "; give the file that save() wrote"));
  }
}

const at::Tensor& TypedFile::matrix(const std::string& name) const {
  const auto found = contents_.tensors.find(name);
  if (found == contents_.tensors.end() || found->second.dim() != 2 || found->second.scalar_type() != at::kDouble) {
    throw FormatError(c10::str(path_, ": expected a float64 matrix '", name, "', got ",
                               found == contents_.tensors.end() ? "none" : c10::str(found->second.sizes()),
                               "; save it anew"));
  }
  return found->second;
}

double TypedFile::number(const std::string& name) const {
  const auto found = contents_.metadata.find(name);
  char* end = nullptr;
  const double value = found == contents_.metadata.end() ? 0.0 : std::strtod(found->second.c_str(), &end);
  if (end == nullptr || end == found->second.c_str() || *end != '\0') {
    throw FormatError(c10::str(path_, ": expected a number '", name, "' in its metadata; save it anew"));
  }
  return value;
}

}  // namespace emmet
