#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace emmet {

/// A strict reader (RFC 8259) of the JSON that safetensors headers consist of: objects, strings and arrays of
/// non-negative integers. The caller asks for what must come next, so nothing recurses and nesting needs no limit.
/// Every method throws FormatError, naming the byte, when something else comes.
class JsonReader {
 public:
  /// Reads `text`, which must be UTF-8 and outlive the reader.
  explicit JsonReader(std::string_view text);

  /// Calls `read_value(key)` at each value of an object; it must read that value. A repeated key is an error.
  void read_object(const std::function<void(const std::string& key)>& read_value);
  std::vector<uint64_t> read_integers();
  std::string read_string();
  /// Nothing but white space may follow.
  void read_end();

 private:
  void skip_space();
  bool accept(char symbol);
  void expect(char symbol);
  uint64_t read_integer();
  void read_escape(std::string& out);
  uint32_t read_hex4();
  [[noreturn]] void fail(const std::string& expected) const;

  std::string_view text_;
  size_t position_ = 0;
};

/// `text` as a JSON string with its quotes. Throws Error when it is not UTF-8.
std::string json_quote(std::string_view text);

}  // namespace emmet
