#include "json.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <set>

#include "emmet/error.h"

namespace emmet {
namespace {

/// Length of the well-formed UTF-8 sequence at the start of `text` (Unicode standard, table 3-7); 0 if there is none.
size_t utf8_sequence(std::string_view text) {
  const auto within = [&](size_t index, unsigned low, unsigned high) {
    return index < text.size() && static_cast<unsigned char>(text[index]) >= low &&
           static_cast<unsigned char>(text[index]) <= high;
  };
  const auto tail = [&](size_t index) { return within(index, 0x80, 0xBF); };
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) {
    return 1;
  }
  if (within(0, 0xC2, 0xDF)) {
    return tail(1) ? 2 : 0;
  }
  if (within(0, 0xE0, 0xEF)) {
    return within(1, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF) && tail(2) ? 3 : 0;
  }
  if (within(0, 0xF0, 0xF4)) {
    return within(1, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF) && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

/// Offset of the first byte that is not UTF-8; npos when all is.
size_t find_invalid_utf8(std::string_view text) {
  for (size_t position = 0; position < text.size();) {
    const size_t length = utf8_sequence(text.substr(position));
    if (length == 0) {
      return position;
    }
    position += length;
  }
  return std::string_view::npos;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto tail = [&](int shift) { out.push_back(static_cast<char>(0x80 | ((code >> shift) & 0x3F))); };
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (code >> 6)));
    tail(0);
  } else if (code < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (code >> 12)));
    tail(6);
    tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | (code >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string hex_byte(char byte) {
  char digits[3];
  std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned>(static_cast<unsigned char>(byte)));
  return digits;
}

}  // namespace

JsonReader::JsonReader(std::string_view text) : text_(text) {
  const size_t invalid = find_invalid_utf8(text);
  if (invalid != std::string_view::npos) {
    position_ = invalid;
    fail("UTF-8");
  }
}

void JsonReader::read_object(const std::function<void(const std::string& key)>& read_value) {
  std::set<std::string> keys;
  expect('{');
  if (accept('}')) {
    return;
  }
  do {
    const auto [key, is_new] = keys.insert(read_string());
    if (!is_new) {
      fail(c10::str("each key once (", json_quote(*key), " is repeated)"));
    }
    expect(':');
    read_value(*key);
  } while (accept(','));
  expect('}');
}

std::vector<uint64_t> JsonReader::read_integers() {
  std::vector<uint64_t> values;
  expect('[');
  if (accept(']')) {
    return values;
  }
  do {
    values.push_back(read_integer());
  } while (accept(','));
  expect(']');
  return values;
}

uint64_t JsonReader::read_integer() {
  skip_space();
  const char* begin = text_.data() + position_;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), value);
  if (error != std::errc() || (*begin == '0' && end - begin > 1)) {
    fail("an integer from 0 to 2^64 - 1");
  }
  position_ += static_cast<size_t>(end - begin);
  return value;
}

std::string JsonReader::read_string() {
  std::string out;
  expect('"');
  while (true) {
    if (position_ == text_.size() || static_cast<unsigned char>(text_[position_]) < 0x20) {
      fail("the rest of a string");
    }
    const char symbol = text_[position_];
    if (symbol == '\\') {
      read_escape(out);
      continue;
    }
    ++position_;
    if (symbol == '"') {
      return out;
    }
    out.push_back(symbol);
  }
}

void JsonReader::read_escape(std::string& out) {
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  ++position_;  // the backslash
  const size_t index = position_ < text_.size() ? kNames.find(text_[position_]) : std::string_view::npos;
  if (index != std::string_view::npos) {
    ++position_;
    out.push_back(kMeanings[index]);
    return;
  }
  uint32_t code = read_hex4();
  if (code >= 0xD800 && code < 0xDC00 && text_.substr(position_, 1) == "\\") {
    ++position_;
    const uint32_t low = read_hex4();
    if (low < 0xDC00 || low > 0xDFFF) {
      fail("the second half of a surrogate pair");
    }
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  if (code >= 0xD800 && code <= 0xDFFF) {
    fail("a surrogate pair");
  }
  append_utf8(out, code);
}

/// The four digits of \uXXXX, from the u on.
uint32_t JsonReader::read_hex4() {
  uint32_t code = 0;
  const std::string_view escape = text_.substr(position_, 5);
  const char* end = escape.data() + escape.size();
  if (escape.size() != 5 || escape[0] != 'u' || std::from_chars(escape.data() + 1, end, code, 16).ptr != end) {
    fail("an escape sequence of JSON");
  }
  position_ += 5;
  return code;
}

void JsonReader::read_end() {
  skip_space();
  if (position_ != text_.size()) {
    fail("the end of the JSON text");
  }
}

void JsonReader::skip_space() { position_ = std::min(text_.find_first_not_of(" \t\r\n", position_), text_.size()); }

bool JsonReader::accept(char symbol) {
  skip_space();
  if (position_ == text_.size() || text_[position_] != symbol) {
    return false;
  }
  ++position_;
  return true;
}

void JsonReader::expect(char symbol) {
  if (!accept(symbol)) {
    fail(c10::str("'", symbol, "'"));
  }
}

void JsonReader::fail(const std::string& expected) const {
  const std::string found = position_ == text_.size() ? "the end" : "byte 0x" + hex_byte(text_[position_]);
  throw FormatError(c10::str("expected ", expected, " at byte ", position_, " of the JSON header, got ", found));
}

std::string json_quote(std::string_view text) {
  if (find_invalid_utf8(text) != std::string_view::npos) {
    throw Error("expected names and metadata in UTF-8, got other bytes; encode them as UTF-8 first");
  }
  std::string out = "\"";
  for (const char symbol : text) {
    if (symbol == '"' || symbol == '\\') {
      out += {'\\', symbol};
    } else if (static_cast<unsigned char>(symbol) < 0x20) {
      out += "\\u00" + hex_byte(symbol);
    } else {
      out.push_back(symbol);
    }
  }
  return out + '"';
}

}  // namespace emmet
