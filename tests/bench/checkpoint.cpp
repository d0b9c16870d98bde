// Saving and loading 400 MB through Fabric against raw writes and reads of the same bytes.

#include <torch/torch.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include <fabric/fabric.h>

#include "tests/bench/bench.h"
#include "tests/bench/raw_file.h"

namespace {

constexpr std::size_t kTensors = 40, kFloats = 2'500'000;  // 10 MB each

}  // namespace

int main() {
  auto folder = std::filesystem::temp_directory_path() / ("fabric_bench_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  auto ours_path = folder / "ours.safetensors", raw_path = folder / "raw.bin";
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  fabric::Value::Map tensors;
  for (std::size_t i = 0; i < kTensors; ++i) tensors['t' + std::to_string(i)] = torch::randn({(int64_t)kFloats});
  std::vector<char> bytes(kTensors * kFloats * sizeof(float));
  for (std::size_t i = 0; i < kTensors; ++i)
    std::memcpy(bytes.data() + i * kFloats * 4, tensors.at('t' + std::to_string(i)).as<at::Tensor>().data_ptr(),
                kFloats * 4);

  std::uint64_t sink = 0;
  bench::header();
  auto save = bench::compare(
      [&] {
        fabric.save(ours_path, {{"model", fabric::Value(tensors)}});
      },
      [&] { bench::raw_write(raw_path, bytes); }, 1, 7);
  bench::row("save 400 MB / raw write + fsync", save.ours / 1e3, save.theirs / 1e3, "ms", 1.1);
  auto load = bench::compare(
      [&] {
        auto whole = fabric.load(ours_path);
        for (auto& [name, value] : whole.at("model").as_map())
          sink += bench::touch(value.as<at::Tensor>().data_ptr(), value.as<at::Tensor>().nbytes());
      },
      [&] { sink += bench::raw_read(raw_path, bytes); }, 1, 9);
  bench::row("load 400 MB, every byte touched / raw read", load.ours / 1e3, load.theirs / 1e3, "ms", 1.2);
  std::filesystem::remove_all(folder);
  return sink == 1;
}
