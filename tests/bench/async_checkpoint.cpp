// How long an asynchronous save holds the training loop, against a copy of the same state by memcpy.

#include <torch/torch.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include <fabric/fabric.h>
#include <fabric/helpers/checkpointing/model_checkpoint.h>

#include "tests/bench/bench.h"

namespace {

struct Case {
  const char* name;
  int tensors;
  std::int64_t floats;
};

struct Times {
  double held = 1e300, copied = 1e300, first = 0, plain = 1e300, beside = 1e300;
};

struct Weights : torch::nn::Module {
  explicit Weights(const std::vector<at::Tensor>& tensors) {
    for (std::size_t i = 0; i < tensors.size(); ++i) register_parameter('t' + std::to_string(i), tensors[i].clone());
  }
};

// Parameters of a module, which the thread may copy under the next passes.
double held_beside(fabric::Fabric& fabric, const std::filesystem::path& folder,
                   const std::vector<at::Tensor>& tensors) {
  auto weights = std::make_shared<Weights>(tensors);
  std::shared_ptr<fabric::SaveInProgress> saving;
  double held = 1e300;
  for (int round = 0; round < 9; ++round) {
    const double time = bench::time_us(
        [&] {
          saving = fabric.save(folder / "beside", {{"model", *weights}},
                               fabric::SaveOptions{.async = true, .copy_beside = true});
        },
        1);
    saving->wait();
    if (round > 0) held = std::min(held, time);
  }
  return held;
}

Times measure(fabric::Fabric& fabric, const std::filesystem::path& folder, const Case& what) {
  std::vector<at::Tensor> tensors, copies;
  fabric::Value::Map model;
  for (int i = 0; i < what.tensors; ++i) {
    tensors.push_back(torch::randn({what.floats}));
    copies.push_back(torch::zeros({what.floats}));  // touched, as the buffers are from the second save on
    model.append('t' + std::to_string(i), tensors.back());
  }
  fabric::State state{{"model", fabric::Value(std::move(model))}};
  auto settings = [&](bool async) {
    return fabric::ModelCheckpoint::Config{.dirpath = folder / (async ? "async" : "plain"), .async = async};
  };
  fabric::ModelCheckpoint async(settings(true), fabric), plain(settings(false), fabric);
  auto copy = [&] {
    for (std::size_t i = 0; i < tensors.size(); ++i)
      std::memcpy(copies[i].mutable_data_ptr(), tensors[i].const_data_ptr(), tensors[i].nbytes());
  };
  auto save = [&] { async.update({}, state); };
  Times times;
  times.first = bench::time_us(save, 1);
  for (int round = 0; round < 9; ++round) {
    async.wait();  // nothing is written while either side is measured
    times.copied = std::min(times.copied, bench::time_us(copy, 1));
    times.held = std::min(times.held, bench::time_us(save, 1));
  }
  async.wait();
  for (int round = 0; round < 3; ++round)
    times.plain = std::min(times.plain, bench::time_us([&] { plain.update({}, state); }, 1));
  times.beside = held_beside(fabric, folder, tensors);
  return times;
}

}  // namespace

int main() {
  auto folder = std::filesystem::temp_directory_path() / ("fabric_bench_" + std::to_string(getpid()));
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  fabric.launch();
  bench::header();
  for (const Case& what :
       {Case{"200 MB in 20 tensors", 20, 2'500'000}, Case{"100 MB in 1,000 tensors", 1000, 25'000}}) {
    Times times = measure(fabric, folder, what);
    bench::row(std::string("async save holds the loop / memcpy, ") + what.name, times.held / 1e3, times.copied / 1e3,
               "ms", 1.05);
    bench::row("  the same, copied beside the next passes", times.beside / 1e3, times.copied / 1e3, "ms", 0.2);
    std::printf("    the first save, which allocates: %.2f ms; a save that is waited for: %.2f ms\n", times.first / 1e3,
                times.plain / 1e3);
    std::filesystem::remove_all(folder);
  }
}
