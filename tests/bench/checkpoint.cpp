// Saving and loading 400 MB through Fabric against raw writes and reads of the same bytes.

#include <fcntl.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include <fabric/fabric.h>

#include "tests/bench/bench.h"

namespace {

constexpr std::size_t kTensors = 40, kFloats = 2'500'000;  // 10 MB each

void raw_write(const std::filesystem::path& path, const std::vector<char>& bytes) {
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  for (std::size_t done = 0; done < bytes.size();) {
    auto n = write(fd, bytes.data() + done, bytes.size() - done);
    if (n <= 0) std::abort();
    done += static_cast<std::size_t>(n);
  }
  fsync(fd);
  close(fd);
}

std::uint64_t touch(const void* data, std::size_t size) {
  std::uint64_t sum = 0, word;
  auto* bytes = static_cast<const char*>(data);
  for (std::size_t i = 0; i + 8 <= size; i += 8) {
    std::memcpy(&word, bytes + i, 8);
    sum += word;
  }
  return sum;
}

// Into memory that is there already, which is more than a load can count on.
std::uint64_t raw_read(const std::filesystem::path& path, std::vector<char>& bytes) {
  int fd = open(path.c_str(), O_RDONLY);
  auto size = std::filesystem::file_size(path);
  for (std::size_t done = 0; done < size;) {
    auto n = read(fd, bytes.data() + done, size - done);
    if (n <= 0) std::abort();
    done += static_cast<std::size_t>(n);
  }
  close(fd);
  return touch(bytes.data(), size);
}

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
      [&] { raw_write(raw_path, bytes); }, 1, 7);
  bench::row("save 400 MB / raw write + fsync", save.ours / 1e3, save.theirs / 1e3, "ms", 1.1);
  auto load = bench::compare(
      [&] {
        auto whole = fabric.load(ours_path);
        for (auto& [name, value] : whole.at("model").as_map())
          sink += touch(value.as<at::Tensor>().data_ptr(), value.as<at::Tensor>().nbytes());
      },
      [&] { sink += raw_read(raw_path, bytes); }, 1, 9);
  bench::row("load 400 MB, every byte touched / raw read", load.ours / 1e3, load.theirs / 1e3, "ms", 1.2);
  std::filesystem::remove_all(folder);
  return sink == 1;
}
