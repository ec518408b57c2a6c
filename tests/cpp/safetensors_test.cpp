#include "emmet/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "emmet/error.h"
#include "oracle.h"

namespace {

using emmet::read_safetensors;
using emmet::TensorFile;
using emmet::write_safetensors;
using oracle::message_of;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "emmet-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = (folder_ / "file.safetensors").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write_bytes(const std::string& bytes) const {
    std::filesystem::remove(path_);  // file systems may flush a file that is truncated in place, which takes long
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  std::string read_bytes() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::vector<std::string> names_in_folder() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }

  std::filesystem::path folder_;
  std::string path_;
};

std::string with_length(const std::string& header, const std::string& data = "") {
  const uint64_t size = header.size();
  std::string prefix(sizeof(size), '\0');
  std::memcpy(prefix.data(), &size, sizeof(size));
  return prefix + header + data;
}

TensorFile sample() {
  return {{{"weight", oracle::random({3, 5}, 1, at::kFloat)}, {"count", at::tensor({int64_t{7}})}}, {{"kind", "test"}}};
}

TEST_F(Safetensors, KeepsEveryDtypeAndShape) {
  TensorFile contents;
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                                     at::kChar, at::kByte, at::kBool}) {
    const std::string name = at::toString(dtype);
    contents.tensors[name] = oracle::random({2, 3}, 2).mul(50).abs().to(dtype);
    contents.tensors[name + " scalar"] = at::ones({}, at::TensorOptions(dtype));
    contents.tensors[name + " empty"] = at::empty({0, 3}, at::TensorOptions(dtype));
  }
  write_safetensors(path_, contents);
  const TensorFile found = read_safetensors(path_);
  ASSERT_EQ(found.tensors.size(), contents.tensors.size());
  for (const auto& [name, tensor] : contents.tensors) {
    const at::Tensor& other = found.tensors.at(name);
    EXPECT_EQ(other.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(other.equal(tensor)) << name;
  }
  EXPECT_TRUE(found.metadata.empty());
}

TEST_F(Safetensors, KeepsAnyUtf8) {
  const std::string odd = std::string("\"quoted\" back\\slash\n\t\x01") + '\0' + "é 鍵 🔑";
  write_safetensors(path_, {{{odd, at::ones({2})}}, {{odd, odd}, {"", ""}}});
  const TensorFile found = read_safetensors(path_);
  EXPECT_EQ(found.tensors.count(odd), 1U);
  EXPECT_EQ(found.metadata, (std::map<std::string, std::string>{{odd, odd}, {"", ""}}));
}

TEST_F(Safetensors, KeepsNothing) {
  write_safetensors(path_, {});
  EXPECT_EQ(read_bytes(), with_length("{}      "));
  EXPECT_TRUE(read_safetensors(path_).tensors.empty());
}

TEST_F(Safetensors, WritesTheFormatByteForByte) {
  const at::Tensor transposed = at::tensor({1.0F, 2.0F, 3.0F, 4.0F}).view({2, 2}).t().requires_grad_(true);
  write_safetensors(path_, {{{"a", at::tensor({1, 2}).to(at::kByte)}, {"b", transposed}}, {{"k", "v"}}});
  const std::string header = R"({"__metadata__":{"k":"v"},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                             R"("a":{"dtype":"U8","shape":[2],"data_offsets":[16,18]}})";
  const std::string floats("\0\0\x80\x3f\0\0\x40\x40\0\0\0\x40\0\0\x80\x40", 16);  // 1, 3, 2, 4
  const std::string padding(7 - (header.size() + 7) % 8, ' ');
  EXPECT_EQ(read_bytes(), with_length(header + padding, floats + "\x01\x02"));
}

TEST_F(Safetensors, ReadsAnyValidHeader) {
  write_bytes(with_length(
      " {\n\"b\\u00e9\\ud83d\\udd11\\n\": {\"shape\" : [ 1 , 2 ], \"data_offsets\":[1,3], \"dtype\":\"U8\"},\r\n"
      "\t\"a\":{\"dtype\":\"I8\",\"shape\":[],\"data_offsets\":[0,1]}, \"__metadata__\":{} }  ",
      "\xff\x05\x06"));
  const TensorFile found = read_safetensors(path_);
  ASSERT_EQ(found.tensors.size(), 2U);
  EXPECT_TRUE(found.tensors.at("a").equal(at::tensor(-1).to(at::kChar).squeeze()));
  EXPECT_TRUE(found.tensors.at("bé🔑\n").equal(at::tensor({5, 6}).to(at::kByte).view({1, 2})));
}

struct Malformed {
  std::string header;
  std::string message;  // what the error says
};

class MalformedHeader : public Safetensors, public testing::WithParamInterface<Malformed> {};

TEST_P(MalformedHeader, IsRefused) {
  write_bytes(with_length(GetParam().header, "12345678"));
  const std::string message = message_of<emmet::FormatError>([&] { read_safetensors(path_); });
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_EQ(message.find(path_), 0U) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

/// A header with one tensor "t" of 8 bytes, told by its three fields.
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    Json, MalformedHeader,
    testing::Values(Malformed{"", "expected '{' at byte 0"}, Malformed{"[]", "expected '{' at byte 0"},
                    Malformed{"{", "got the end"}, Malformed{"{}x", "expected the end"},
                    Malformed{"{\"t\"", "expected ':'"}, Malformed{"{\"t\":1}", "expected '{'"},
                    Malformed{"{\"t", "rest of a string"}, Malformed{"{\"t\n\":{}}", "rest of a string"},
                    Malformed{"{\"__metadata__\":{},}", "expected '\"'"},
                    Malformed{"{\"\xff\":{}}", "expected UTF-8 at byte 2"}, Malformed{"{\"\xc0\xaf\":{}}", "UTF-8"},
                    Malformed{"{\"\xe0\x80\xaf\":{}}", "UTF-8"}, Malformed{"{\"\xf0\x80\x80\xaf\":{}}", "UTF-8"},
                    Malformed{"{\"\xed\xa0\x80\":{}}", "UTF-8"}, Malformed{"{\"\xf4\x90\x80\x80\":{}}", "UTF-8"},
                    Malformed{"{\"\xe9\x8d\":{}}", "UTF-8"}, Malformed{R"({"\x":{}})", "escape sequence"},
                    Malformed{R"({"\u12g4":{}})", "escape sequence"}, Malformed{R"({"\)", "escape sequence"},
                    Malformed{R"({"\ud83d":{}})", "surrogate pair"},
                    Malformed{R"({"\ud83d\u0041":{}})", "surrogate pair"},
                    Malformed{R"({"\udd11":{}})", "surrogate pair"}));

INSTANTIATE_TEST_SUITE_P(Fields, MalformedHeader,
                         testing::Values(Malformed{one("1", "[8]", "[0,8]"), "expected '\"'"},
                                         Malformed{one("\"F7\"", "[8]", "[0,8]"), "got \"F7\""},
                                         Malformed{one("\"U8\"", "[-8]", "[0,8]"), "integer from 0"},
                                         Malformed{one("\"U8\"", "[8.0]", "[0,8]"), "expected ']'"},
                                         Malformed{one("\"U8\"", "[08]", "[0,8]"), "integer from 0"},
                                         Malformed{one("\"U8\"", "[8,]", "[0,8]"), "integer from 0"},
                                         Malformed{one("\"U8\"", "[18446744073709551616]", "[0,8]"), "integer from 0"},
                                         Malformed{one("\"U8\"", "[[8]]", "[0,8]"), "integer from 0"},
                                         Malformed{one("\"U8\"", "[8]", "[0]"), "two data_offsets"},
                                         Malformed{one("\"U8\"", "[8]", "[0,4,8]"), "two data_offsets"},
                                         Malformed{one("\"U8\"", "[8],\"extra\":[]", "[0,8]"), "got key \"extra\""},
                                         Malformed{one("\"U8\"", "[8],\"shape\":[8]", "[0,8]"),
                                                   "\"shape\" is repeated"},
                                         Malformed{R"({"t":{"dtype":"U8","data_offsets":[0,8]}})", "a dtype, a shape"},
                                         Malformed{R"({"t":{"shape":[8],"data_offsets":[0,8]}})", "a dtype, a shape"},
                                         Malformed{R"({"__metadata__":{"a":1}})", "expected '\"'"},
                                         Malformed{R"({"__metadata__":{"a":"1","a":"2"}})", "\"a\" is repeated"}));

INSTANTIATE_TEST_SUITE_P(
    Sizes, MalformedHeader,
    testing::Values(Malformed{"{}", "expected 0 bytes of data by the header, got 8"},
                    Malformed{one("\"U8\"", "[7]", "[0,7]"), "expected 7 bytes of data by the header, got 8"},
                    Malformed{one("\"U8\"", "[9]", "[0,9]"), "expected 9 bytes of data by the header, got 8"},
                    Malformed{one("\"U8\"", "[7]", "[0,8]"), "expected 7 bytes by shape and dtype"},
                    Malformed{one("\"F32\"", "[8]", "[0,8]"), "expected 32 bytes by shape and dtype"},
                    Malformed{one("\"U8\"", "[8]", "[8,0]"), "got data_offsets 8 to 0"},
                    Malformed{one("\"U8\"", "[7]", "[1,8]"), "at data offset 0, got 1"},
                    Malformed{one("\"U8\"", "[8]", "[18446744073709551615,7]"), "data_offsets 18446744073709551615"},
                    Malformed{one("\"U8\"", "[18446744073709551615]", "[0,8]"), "less than 2^63 bytes"},
                    Malformed{one("\"I64\"", "[1152921504606846976,2]", "[0,8]"), "less than 2^63 bytes"},
                    Malformed{one("\"U8\"", "[0,4294967296,4294967296]", "[0,0]"), "less than 2^63 bytes"},
                    Malformed{R"({"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                              R"("u":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                              "at data offset 8, got 4"},
                    Malformed{R"({"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                              R"("t":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}})",
                              "\"t\" is repeated"},
                    Malformed{one("\"BOOL\"", "[8]", "[0,8]"), "bytes 0 and 1"}));

TEST_F(Safetensors, RefusesHeaderLengthsBeyondTheFile) {
  for (const char* length : {"\x03\0\0\0\0\0\0\0", "\xff\xff\xff\xff\xff\xff\xff\xff", "\0\0\0\0\0\0\0\x80"}) {
    write_bytes(std::string(length, 8) + "{}");
    const std::string message = message_of<emmet::FormatError>([&] { read_safetensors(path_); });
    EXPECT_NE(message.find("a header of at most 2 bytes"), std::string::npos) << message;
  }
}

TEST_F(Safetensors, RefusesHeadersOfMoreThan100MB) {
  write_bytes(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8));  // 100,000,001
  std::filesystem::resize_file(path_, 200'000'000);         // sparse
  const std::string message = message_of<emmet::FormatError>([&] { read_safetensors(path_); });
  EXPECT_NE(message.find("a header of at most 100000000 bytes"), std::string::npos) << message;
}

TEST_F(Safetensors, RefusesEveryTruncationAndExtension) {
  write_safetensors(path_, sample());
  const std::string whole = read_bytes();
  for (size_t size = 0; size < whole.size(); ++size) {
    write_bytes(whole.substr(0, size));
    EXPECT_THROW(read_safetensors(path_), emmet::FormatError) << size;
  }
  write_bytes(whole + "\n");
  EXPECT_THROW(read_safetensors(path_), emmet::FormatError);
}

TEST_F(Safetensors, ReadsOrRefusesDamagedFiles) {
  write_safetensors(path_, sample());
  const std::string whole = read_bytes();
  std::mt19937_64 engine(3);
  int refused = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::string damaged = whole;
    for (uint64_t hits = 1 + engine() % 3; hits > 0; --hits) {
      damaged[engine() % damaged.size()] = static_cast<char>(engine());
    }
    write_bytes(damaged);
    try {
      read_safetensors(path_);
    } catch (const emmet::FormatError&) {  // any other exception fails the test
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST_F(Safetensors, SaysWhyAFileCannotBeRead) {
  const std::string missing = message_of<emmet::Error>([&] { read_safetensors(path_); });
  EXPECT_NE(missing.find(path_ + ": No such file"), std::string::npos) << missing;
  EXPECT_THROW(read_safetensors(folder_.string()), emmet::Error);
}

TEST_F(Safetensors, WritesNoHeaderThatItWouldNotRead) {
  write_safetensors(path_, {{{"ones", at::ones({3})}}, {}});
  EXPECT_THROW(write_safetensors(path_, {{}, {{"text", std::string(100'000'001, ' ')}}}), emmet::Error);
  EXPECT_EQ(read_safetensors(path_).tensors.count("ones"), 1U);
}

TEST_F(Safetensors, ReplacesAFileAndLeavesNothingElse) {
  write_bytes("old");
  write_safetensors(path_, sample());
  EXPECT_EQ(read_safetensors(path_).metadata.at("kind"), "test");
  EXPECT_EQ(names_in_folder(), std::vector<std::string>{"file.safetensors"});
}

TEST_F(Safetensors, LeavesNothingWhenItCannotWrite) {
  const std::string message =
      message_of<emmet::Error>([&] { write_safetensors((folder_ / "none" / "file").string(), sample()); });
  EXPECT_NE(message.find("No such file"), std::string::npos) << message;

  std::filesystem::create_directory(path_);  // the last step, the renaming, fails
  EXPECT_THROW(write_safetensors(path_, sample()), emmet::Error);
  EXPECT_EQ(names_in_folder(), std::vector<std::string>{"file.safetensors"});
}

TEST_F(Safetensors, RefusesToWriteWhatTheFormatCannotHold) {
  const auto write = [&](const std::string& name, const at::Tensor& tensor) {
    write_safetensors(path_, {{{name, tensor}}, {}});
  };
  EXPECT_THROW(write("__metadata__", at::ones({1})), emmet::Error);
  EXPECT_THROW(write("\xff", at::ones({1})), emmet::Error);
  EXPECT_THROW(write_safetensors(path_, {{}, {{"key", "\xff"}}}), emmet::Error);
  EXPECT_THROW(write("t", at::Tensor()), emmet::ShapeError);
  EXPECT_THROW(write("t", at::ones({1}, at::TensorOptions(at::kComplexFloat))), emmet::ShapeError);
  EXPECT_THROW(write("t", at::ones({2, 2}).to_sparse()), emmet::ShapeError);
  EXPECT_THROW(write("t", at::empty({1}, at::TensorOptions(at::kMeta))), emmet::ShapeError);
  EXPECT_TRUE(names_in_folder().empty());
}

TEST_F(Safetensors, IsReadWholeWhileOthersReplaceIt) {
  const auto write = [this](int64_t size) { write_safetensors(path_, {{{"ones", at::ones({size})}}, {}}); };
  write(1);
  std::atomic<bool> is_done = false;
  std::thread writer([&] {
    for (int64_t round = 0; round < 100; ++round) write(1 + 1000 * (round % 2));
    is_done = true;
  });
  while (!is_done) EXPECT_NO_THROW(read_safetensors(path_));
  writer.join();
}

TEST_F(Safetensors, ManyThreadsMayWriteOneFile) {
  std::vector<std::thread> writers;
  for (int64_t id = 0; id < 4; ++id) {
    writers.emplace_back([this, id] {
      for (int round = 0; round < 10; ++round) {
        write_safetensors(path_, {{{"id", at::zeros({1000}).add_(id)}}, {{"id", std::to_string(id)}}});
      }
    });
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  const TensorFile found = read_safetensors(path_);
  EXPECT_TRUE(found.tensors.at("id").eq(std::stoi(found.metadata.at("id"))).all().item<bool>());
  EXPECT_EQ(names_in_folder().size(), 1U);
}

}  // namespace
