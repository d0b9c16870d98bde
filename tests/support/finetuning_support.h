#pragma once

#include <torch/torch.h>

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>
#include <fabric/helpers/finetuning/finetuning_messages.h>

#include "tests/support/catch.h"

// What the tests of the fine-tuning scheduler share.
namespace finetuning_test {

/// model.0 … model.3: four linear layers.
struct NetImpl : torch::nn::Module {
  explicit NetImpl(int layers = 4, std::int64_t width = 3) {
    model = register_module("model", torch::nn::Sequential());
    for (int i = 0; i < layers; ++i) model->push_back(torch::nn::Linear(width, width));
  }
  at::Tensor forward(at::Tensor x) { return model->forward(x); }
  torch::nn::Sequential model{nullptr};
};
TORCH_MODULE(Net);

/// A folder of the test's own, removed at its end.
struct Folder {
  Folder() {
    static int count = 0;
    path = std::filesystem::temp_directory_path() /
           ("fabric_finetuning_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directories(path);
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path, error);
  }
  std::string file(const std::string& name) const { return (path / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name) << text;
    return file(name);
  }
  std::filesystem::path path;
};

/// Collects what a scheduler says.
struct Said {
  std::vector<std::pair<fabric::log::Level, std::string>> lines;
  fabric::FinetuningMessages::Sink sink() {
    return [this](fabric::log::Level level, const std::string& text) { lines.emplace_back(level, text); };
  }
  int count(fabric::log::Level level, const std::string& part = "") const {
    return static_cast<int>(std::count_if(lines.begin(), lines.end(), [&](const auto& line) {
      return line.first == level && line.second.find(part) != std::string::npos;
    }));
  }
  bool warned(const std::string& part = "") const { return count(fabric::log::Level::warn, part) > 0; }
  bool informed(const std::string& part = "") const { return count(fabric::log::Level::info, part) > 0; }
  std::string text() const {
    std::string all;
    for (const auto& line : lines) all += line.second + "\n";
    return all;
  }
};

/// The text of the error that `action` throws; empty when it throws none.
template <class Error, class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

using Names = std::vector<std::string>;

}  // namespace finetuning_test
