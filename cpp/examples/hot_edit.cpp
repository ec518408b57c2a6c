// Corrects a weight while another thread runs inference on it, and takes the correction back.
//
//   hot_edit [METRIC LEDGER MODEL WEIGHT]
//
// METRIC is a file that Preservation.save wrote, and LEDGER a folder that Editor.save wrote, of edits of one layer,
// whose first batch is made. WEIGHT is the name of that layer's weight [d_out, d_in] in the safetensors file MODEL.
// Without arguments, random numbers of the size of one MLP of SmolLM2-135M stand for all three.

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <c10/core/GradMode.h>
#include <emmet/covariance.h>
#include <emmet/error.h>
#include <emmet/preservation.h>
#include <emmet/safetensors.h>
#include <emmet/solve.h>
#include <emmet/versioned_weights.h>
#include <torch/nn/modules/linear.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kLedgerFile = "ledger.safetensors";

struct Files {
  std::filesystem::path metric, ledger, model;
  std::string weight;
};

Files random_files(const std::filesystem::path& folder) {
  constexpr int64_t d_in = 1536, d_out = 576, edits = 8;
  const Files files{folder / "metric", folder / "ledger", folder / "model", "down_proj.weight"};
  emmet::Covariance covariance(d_in);
  covariance.add(at::randn({4 * d_in, d_in}));
  emmet::Preservation::from_second_moment(covariance.second_moment()).save(files.metric);
  std::filesystem::create_directory(files.ledger);
  emmet::write_safetensors(files.ledger / kLedgerFile, {{{"batch.0.layer.7.keys", at::randn({edits, d_in})},
                                                         {"batch.0.layer.7.residuals", at::randn({edits, d_out})}},
                                                        {}});
  emmet::write_safetensors(files.model, {{{files.weight, at::randn({d_out, d_in})}}, {}});
  return files;
}

at::Tensor read(const std::string& path, const std::string& name) {
  const auto tensors = emmet::read_safetensors(path).tensors;
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    throw emmet::Error(path + ": expected a tensor '" + name + "', got none of this name; see the top of hot_edit.cpp");
  }
  return found->second;
}

/// What a solve takes: keys [n, d_in] and residuals [n, d_out].
struct Edits {
  at::Tensor keys, residuals;
};

Edits read_first_batch(const std::filesystem::path& ledger) {
  const auto tensors = emmet::read_safetensors(ledger / kLedgerFile).tensors;
  const std::regex pattern("batch\\.0\\.layer\\.[0-9]+\\.(keys|residuals)");
  std::map<std::string, at::Tensor> found;
  for (const auto& [name, tensor] : tensors) {
    std::smatch match;
    if (std::regex_match(name, match, pattern) && !found.emplace(match[1], tensor).second) {
      throw emmet::Error(ledger.string() + ": expected edits of one layer, got several; see the top of hot_edit.cpp");
    }
  }
  if (found.empty()) throw emmet::Error(ledger.string() + ": expected a ledger with edits, got one without");
  return {found.at("keys"), found.at("residuals")};
}

/// A folder of its own, removed in the end.
struct ScratchFolder {
  ScratchFolder() { std::filesystem::create_directory(path); }
  ~ScratchFolder() { std::filesystem::remove_all(path); }
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("emmet_hot_edit." + std::to_string(getpid()));
};

/// Prints how long it lived.
struct Stage {
  ~Stage() {
    const std::chrono::duration<double, std::milli> elapsed = Clock::now() - start;
    std::printf("%-14s %9.3f ms\n", name, elapsed.count());
  }
  const char* name;
  Clock::time_point start = Clock::now();
};

template <typename Action>
auto timed(const char* name, Action action) {
  const Stage stage{name};
  return action();
}

/// A thread that runs a torch::nn layer on the keys of an edit, over and over, and sees which version each pass used.
class Inference {
 public:
  Inference(const emmet::VersionedWeights& served, const std::string& weight, const at::Tensor& keys,
            const at::Tensor& residuals)
      : served_(served),
        weight_(weight),
        layer_(torch::nn::LinearOptions(keys.size(1), residuals.size(1)).bias(false)),
        before_(forward(keys)),
        after_(before_ + residuals),
        thread_([this, keys] {
          while (!stop_) count(forward(keys));
        }) {}
  ~Inference() { stop(); }

  /// Returns once a hundred more passes are done.
  void go_on() const {
    for (const int64_t end = passes() + 100; passes() < end;) std::this_thread::yield();
  }
  void stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

  int64_t unedited() const { return unedited_; }
  int64_t edited() const { return edited_; }
  int64_t torn() const { return torn_; }

 private:
  /// Stands for the forward pass of a model, whose modules get the weights of one snapshot for all of a request.
  at::Tensor forward(const at::Tensor& input) {
    const at::NoGradGuard no_grad;
    const auto weights = served_.snapshot();
    const auto& weight = weights->at(weight_);
    layer_->weight.set_data(weight);  // shared, not copied
    return layer_->forward(input.to(weight.dtype()));
  }

  void count(const at::Tensor& output) {
    // Rounding is far below a tenth of the correction, and a torn weight makes a good part of it only.
    const double difference = (after_ - before_).norm().item<double>();
    const auto equals = [&](const at::Tensor& expected) {
      return (output - expected).norm().item<double>() < 0.1 * difference;
    };
    ++(equals(before_) ? unedited_ : equals(after_) ? edited_ : torn_);
  }
  int64_t passes() const { return unedited_ + edited_ + torn_; }

  const emmet::VersionedWeights& served_;
  const std::string weight_;
  torch::nn::Linear layer_;  // no other thread's: its parameters are set
  const at::Tensor before_, after_;
  std::atomic<int64_t> unedited_{0}, edited_{0}, torn_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;  // last, as it uses all of these
};

int hot_edit(const Files& files) {
  emmet::VersionedWeights served({{files.weight, read(files.model, files.weight)}});

  const auto metric = timed("load metric", [&] { return emmet::Preservation::load(files.metric); });
  const auto edits = timed("load ledger", [&] { return read_first_batch(files.ledger); });

  Inference inference(served, files.weight, edits.keys, edits.residuals);
  inference.go_on();
  const auto update = timed("solve", [&] { return emmet::solve(metric, edits.keys, edits.residuals); });
  timed("apply", [&] { served.apply({{files.weight, update}}); });
  inference.go_on();
  timed("undo", [&] { served.undo(); });
  inference.go_on();
  inference.stop();

  std::printf("passes of inference: %ld without the edit, %ld with it, %ld torn\n", inference.unedited(),
              inference.edited(), inference.torn());
  return inference.torn() == 0 && inference.edited() > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 5) return hot_edit({argv[1], argv[2], argv[3], argv[4]});
  if (argc != 1) {
    std::cerr << "usage: hot_edit [METRIC LEDGER MODEL WEIGHT]\n";
    return 2;
  }
  const ScratchFolder folder;
  return hot_edit(random_files(folder.path));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
