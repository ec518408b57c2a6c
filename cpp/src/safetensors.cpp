#include "emmet/safetensors.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "emmet/error.h"
#include "json.h"

// The format: https://huggingface.co/docs/safetensors. Eight bytes of header length, a JSON header, the bytes of all
// tensors. Numbers are little-endian.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors files are little-endian, and so is this code");

namespace emmet {
namespace {

constexpr uint64_t kPrefixSize = sizeof(uint64_t);
constexpr uint64_t kMaxHeaderSize = 100'000'000;  // as in the reference implementation
constexpr std::string_view kMetadataKey = "__metadata__";

constexpr std::array<std::pair<std::string_view, at::ScalarType>, 10> kDtypes{{
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
}};

/// What the header says of one tensor. Offsets count from the end of the header.
struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin;
  uint64_t end;
};

struct Header {
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
};

// ---- Reading

at::ScalarType dtype_of(const std::string& name) {
  for (const auto& [known, dtype] : kDtypes) {
    if (known == name) {
      return dtype;
    }
  }
  throw FormatError(
      c10::str("expected dtype F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL, got ", json_quote(name)));
}

/// Bytes of a tensor; throws when they, or the strides of an empty tensor, overflow.
uint64_t byte_size(const std::vector<uint64_t>& shape, at::ScalarType dtype) {
  auto size = static_cast<int64_t>(c10::elementSize(dtype));
  for (const uint64_t length : shape) {
    if (__builtin_mul_overflow(size, std::max<uint64_t>(length, 1), &size)) {
      throw FormatError(c10::str("expected a shape of less than 2^63 bytes, got [", c10::Join(", ", shape), "]"));
    }
  }
  const bool is_empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  return is_empty ? 0 : static_cast<uint64_t>(size);
}

Entry read_entry(JsonReader& json, const std::string& name) {
  std::optional<at::ScalarType> dtype;
  std::optional<std::vector<uint64_t>> shape;
  std::vector<uint64_t> offsets;
  json.read_object([&](const std::string& key) {
    if (key == "dtype") {
      dtype = dtype_of(json.read_string());
    } else if (key == "shape") {
      shape = json.read_integers();
    } else if (key == "data_offsets") {
      offsets = json.read_integers();
    } else {
      throw FormatError(c10::str("expected dtype, shape and data_offsets, got key ", json_quote(key)));
    }
  });
  if (!dtype || !shape || offsets.size() != 2) {
    throw FormatError("expected a dtype, a shape and two data_offsets, got fewer or more");
  }
  const auto [begin, end] = std::pair(offsets[0], offsets[1]);
  const uint64_t size = byte_size(*shape, *dtype);
  if (begin > end || end - begin != size) {
    throw FormatError(c10::str("expected ", size, " bytes by shape and dtype, got data_offsets ", begin, " to ", end));
  }
  return {name, *dtype, std::vector<int64_t>(shape->begin(), shape->end()), begin, end};
}

/// The tensors must fill the data without gap or overlap.
void require_contiguous(std::vector<Entry>& entries, uint64_t data_size) {
  std::sort(entries.begin(), entries.end(), [](const Entry& left, const Entry& right) {
    return std::pair(left.begin, left.end) < std::pair(right.begin, right.end);
  });
  uint64_t position = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != position) {
      throw FormatError(
          c10::str("expected tensor ", json_quote(entry.name), " at data offset ", position, ", got ", entry.begin));
    }
    position = entry.end;
  }
  if (position != data_size) {
    throw FormatError(c10::str("expected ", position, " bytes of data by the header, got ", data_size));
  }
}

Header parse_header(std::string_view text, uint64_t data_size) {
  Header header;
  JsonReader json(text);
  json.read_object([&](const std::string& name) {
    if (name == kMetadataKey) {
      json.read_object([&](const std::string& key) { header.metadata[key] = json.read_string(); });
      return;
    }
    try {
      header.entries.push_back(read_entry(json, name));
    } catch (const FormatError& error) {
      throw FormatError(c10::str("tensor ", json_quote(name), ": ", error.what()));
    }
  });
  json.read_end();
  require_contiguous(header.entries, data_size);
  return header;
}

void read_bytes(std::istream& file, void* target, uint64_t size) {
  file.read(static_cast<char*>(target), static_cast<std::streamsize>(size));
  if (!file) {
    throw FormatError(c10::str("expected ", size, " more bytes, got ", file.gcount()));
  }
}

at::Tensor read_tensor(std::istream& file, const Entry& entry) {
  at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
  const uint64_t size = entry.end - entry.begin;
  if (size == 0) {
    return tensor;
  }
  read_bytes(file, tensor.data_ptr(), size);
  const auto* bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  if (entry.dtype == at::kBool && std::any_of(bytes, bytes + size, [](unsigned char byte) { return byte > 1; })) {
    throw FormatError(c10::str("expected bytes 0 and 1 in boolean tensor ", json_quote(entry.name), ", got others"));
  }
  return tensor;
}

TensorFile read_contents(std::istream& file, uint64_t file_size) {
  if (file_size < kPrefixSize) {
    throw FormatError(c10::str("expected at least ", kPrefixSize, " bytes, got ", file_size));
  }
  uint64_t header_size = 0;
  read_bytes(file, &header_size, kPrefixSize);
  const uint64_t limit = std::min(kMaxHeaderSize, file_size - kPrefixSize);
  if (header_size > limit) {
    throw FormatError(c10::str("expected a header of at most ", limit, " bytes, got a length of ", header_size));
  }
  std::string text(header_size, '\0');
  read_bytes(file, text.data(), header_size);
  Header header = parse_header(text, file_size - kPrefixSize - header_size);

  TensorFile contents{{}, std::move(header.metadata)};
  for (const Entry& entry : header.entries) {
    contents.tensors.emplace(entry.name, read_tensor(file, entry));
  }
  return contents;
}

// ---- Writing

std::string reason() { return std::strerror(errno); }

/// A new file beside `path` that takes its name at `commit` and disappears without it.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path)
      : path_(path),
        temporary_path_(c10::str(path, ".", std::random_device()(), std::random_device()(), ".tmp")),
        descriptor_(::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) {
      fail();
    }
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    ::close(descriptor_);
    ::unlink(temporary_path_.c_str());  // finds nothing after `commit`
  }

  void write(const void* data, size_t size) {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t written = ::write(descriptor_, bytes, size);
      if (written < 0 && errno != EINTR) {
        fail();
      }
      const size_t advance = written < 0 ? 0 : static_cast<size_t>(written);
      bytes += advance;
      size -= advance;
    }
  }

  void commit() {
    if (::fsync(descriptor_) != 0 || std::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
      fail();
    }
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(c10::str("cannot write ", path_, ": ", reason(), "; check the folder, its permissions and free space"));
  }

  std::string path_;
  std::string temporary_path_;
  int descriptor_;
};

/// The format's name of a dtype; empty when it has none.
std::string_view dtype_name(at::ScalarType dtype) {
  for (const auto& [name, known] : kDtypes) {
    if (known == dtype) {
      return name;
    }
  }
  return {};
}

void require_storable(const std::string& name, const at::Tensor& tensor) {
  if (name == kMetadataKey) {
    throw Error(c10::str("expected a tensor name other than ", name, ", which the format reserves; rename the tensor"));
  }
  if (!tensor.defined() || tensor.layout() != at::kStrided || tensor.is_meta()) {
    throw ShapeError(c10::str("expected tensor ", json_quote(name), " with dense data, got none; leave it out"));
  }
  if (dtype_name(tensor.scalar_type()).empty()) {
    throw ShapeError(c10::str("expected tensor ", json_quote(name), " of a float, integer or boolean dtype, got ",
                              tensor.scalar_type(), "; convert it first"));
  }
}

using NamedTensor = std::pair<std::string, at::Tensor>;

/// Widest dtypes first, so that every tensor is aligned; then by name.
std::vector<NamedTensor> in_file_order(const std::map<std::string, at::Tensor>& tensors) {
  std::vector<NamedTensor> order(tensors.begin(), tensors.end());
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor& left, const NamedTensor& right) {
    return left.second.element_size() > right.second.element_size();
  });
  return order;
}

std::string metadata_json(const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> members;
  for (const auto& [key, value] : metadata) {
    members.push_back(json_quote(key) + ":" + json_quote(value));
  }
  return "{" + c10::Join(",", members) + "}";
}

/// The header, padded with spaces so that the data begins at a multiple of eight bytes.
std::string header_json(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<std::string> members;
  if (!metadata.empty()) {
    members.push_back(c10::str(json_quote(kMetadataKey), ":", metadata_json(metadata)));
  }
  size_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const size_t end = offset + tensor.nbytes();
    members.push_back(c10::str(json_quote(name), ":{\"dtype\":\"", dtype_name(tensor.scalar_type()), "\",\"shape\":[",
                               c10::Join(",", tensor.sizes()), "],\"data_offsets\":[", offset, ",", end, "]}"));
    offset = end;
  }
  std::string header = "{" + c10::Join(",", members) + "}";
  header.append((kPrefixSize - header.size() % kPrefixSize) % kPrefixSize, ' ');
  return header;
}

}  // namespace

TensorFile read_safetensors(const std::string& path) {
  std::error_code error;
  static_cast<void>(std::filesystem::file_size(path, error));  // which only a file has
  if (error) {
    throw Error(c10::str("cannot read ", path, ": ", error.message(), "; check the path"));
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    throw Error(c10::str("cannot read ", path, ": ", reason(), "; check its permissions"));
  }
  const std::streamoff size = file.tellg();  // of what is open: another file may have taken the name
  file.seekg(0);
  try {
    return read_contents(file, static_cast<uint64_t>(size));
  } catch (const FormatError& format_error) {
    throw FormatError(c10::str(path, " is not a safetensors file, or a damaged one: ", format_error.what(),
                               "; make it again or fetch it again"));
  }
}

void write_safetensors(const std::string& path, const TensorFile& contents) {
  for (const auto& [name, tensor] : contents.tensors) {
    require_storable(name, tensor);
  }
  const std::vector<NamedTensor> tensors = in_file_order(contents.tensors);
  const std::string header = header_json(tensors, contents.metadata);
  const uint64_t header_size = header.size();
  if (header_size > kMaxHeaderSize) {
    throw Error(c10::str("expected names and metadata of at most ", kMaxHeaderSize, " bytes, got ", header_size,
                         "; readers refuse more: shorten them"));
  }

  TemporaryFile file(path);
  file.write(&header_size, kPrefixSize);
  file.write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor data = tensor.detach().cpu().contiguous();
    file.write(data.const_data_ptr(), data.nbytes());
  }
  file.commit();
}

}  // namespace emmet
