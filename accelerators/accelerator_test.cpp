#include <fabric/accelerators/accelerator.h>

#include <sched.h>

#include <algorithm>
#include <cstring>

#include <torch/torch.h>

#include <fabric/accelerators/cpu.h>
#include <fabric/accelerators/cuda.h>
#include <fabric/accelerators/torch_accelerator.h>
#include "tests/support/catch.h"
#include "tests/support/control_group.h"

using fabric::ConfigError;
using fabric::make_accelerator;
using fabric::MisuseError;
using fabric::UnavailableError;

TEST_CASE("CPU devices are a number of processes", "[cpu]") {
  fabric::CpuAccelerator cpu;
  CHECK(cpu.parse_devices("auto") == std::vector<int>{0});
  CHECK(cpu.parse_devices(3) == std::vector<int>{0, 1, 2});
  CHECK(cpu.parse_devices("2") == std::vector<int>{0, 1});
  CHECK(cpu.get_parallel_devices({0, 1}) == std::vector<c10::Device>(2, c10::Device("cpu")));
  for (fabric::DeviceSpec spec : {fabric::DeviceSpec(0), fabric::DeviceSpec(-1), fabric::DeviceSpec(-3),
                                  fabric::DeviceSpec("2,"), fabric::DeviceSpec{0, 1}, fabric::DeviceSpec("all")}) {
    INFO("devices=" << spec.text());
    CHECK_THROWS_AS(cpu.parse_devices(spec), ConfigError);
  }
  CHECK_NOTHROW(cpu.setup_device(c10::Device("cpu")));
  CHECK_THROWS_AS(cpu.setup_device(c10::Device("cuda:0")), MisuseError);
}

TEST_CASE("a container's limit of memory is all that there is", "[cpu]") {
  constexpr std::int64_t kBytes = 1 << 30;
  control_group::MemoryGroup group(kBytes);
  if (!group)
    WARN("no memory cgroup may be made here");
  else
    CHECK(group.holds([] { return fabric::CpuAccelerator().memory_stats(c10::Device("cpu")).total_bytes == kBytes; }));
}

TEST_CASE("threads per rank come from the affinity mask", "[cpu]") {
  fabric::CpuAccelerator cpu;
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  int all = CPU_COUNT(&before);
  CHECK(cpu.threads_per_rank(1) == all);
  CHECK(cpu.threads_per_rank(2) == std::max(1, all / 2));
  CHECK(cpu.threads_per_rank(10 * all) == 1);
  CHECK(cpu.threads_per_rank(0) == all);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &before)) {
      CPU_SET(i, &one);
      break;
    }
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  CHECK(cpu.threads_per_rank(1) == 1);
  REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
}

TEST_CASE("CPU memory figures follow the process", "[cpu]") {
  fabric::CpuAccelerator cpu;
  c10::Device device("cpu");
  cpu.reset_peak_memory(device);
  auto before = cpu.memory_stats(device);
  constexpr std::size_t kBytes = 64 << 20;
  {
    auto block = std::make_unique<char[]>(kBytes);
    std::memset(block.get(), 1, kBytes);
    CHECK(cpu.memory_stats(device).allocated_bytes >= before.allocated_bytes + std::int64_t(kBytes) / 2);
  }
  auto after = cpu.memory_stats(device);
  CHECK(after.peak_allocated_bytes >= before.allocated_bytes + std::int64_t(kBytes) / 2);
  CHECK(after.allocated_bytes < after.peak_allocated_bytes);
  CHECK(after.total_bytes > after.allocated_bytes);
  CHECK(after.reserved_bytes >= after.allocated_bytes);
}

TEST_CASE("seeding the CPU repeats its random numbers", "[cpu]") {
  auto cpu = make_accelerator("cpu");
  cpu->manual_seed(5);
  auto first = torch::rand({4});
  cpu->manual_seed(5);
  CHECK(torch::equal(first, torch::rand({4})));
}

TEST_CASE("accelerators are made by name", "[registry]") {
  CHECK(make_accelerator("cpu")->name() == "cpu");
  CHECK(make_accelerator("CPU")->name() == "cpu");
  CHECK_THROWS_WITH(make_accelerator("cda"), Catch::Contains("did you mean 'cuda'"));
  CHECK_THROWS_AS(make_accelerator("quantum"), ConfigError);
  CHECK_THROWS_AS(make_accelerator(""), ConfigError);
  for (const char* name : {"mps", "tpu", "xla"}) {
    CHECK_THROWS_AS(make_accelerator(name), UnavailableError);
    CHECK_THROWS_WITH(make_accelerator(name), Catch::Contains("Supported: cpu, cuda"));
  }
  auto registered = fabric::registered_accelerators();
  REQUIRE(registered.size() >= 2);
  CHECK(registered[0] == "cpu");
  CHECK(registered[1] == "cuda");
}

TEST_CASE("auto takes the GPU where there is one, and gpu means cuda", "[registry]") {
  auto available = fabric::available_accelerators();
  bool has_gpu = std::count(available.begin(), available.end(), "cuda") == 1;
  CHECK(make_accelerator("auto")->name() == (has_gpu ? "cuda" : "cpu"));
  if (has_gpu) {
    CHECK(make_accelerator("gpu")->name() == "cuda");
  } else {
    CHECK_THROWS_AS(make_accelerator("gpu"), UnavailableError);
    CHECK_THROWS_WITH(make_accelerator("cuda"), Catch::Contains("GPU") && Catch::Contains("Available here: cpu"));
  }
}

TEST_CASE("accelerators of the user's own", "[registry]") {
  struct Toaster : fabric::CpuAccelerator {
    std::string name() const override { return "toaster"; }
  };
  auto make = [] { return std::make_shared<Toaster>(); };
  fabric::register_accelerator("Toaster", make);
  CHECK(make_accelerator("toaster")->name() == "toaster");
  CHECK_THROWS_AS(fabric::register_accelerator("toaster", make), ConfigError);
  CHECK_NOTHROW(fabric::register_accelerator("toaster", make, true));
  CHECK_THROWS_AS(fabric::register_accelerator("auto", make), ConfigError);
  CHECK_THROWS_AS(fabric::register_accelerator("null", nullptr), MisuseError);
  CHECK(fabric::available_accelerators().back() == "toaster");
}

TEST_CASE("devices that nothing brings are told from those of other kinds", "[accelerator]") {
  fabric::TorchAccelerator absent(c10::DeviceType::XPU);
  CHECK(absent.name() == "xpu");
  CHECK_FALSE(absent.is_available());
  CHECK_THAT(absent.unavailable_reason(), Catch::Contains("'xpu'"));
  CHECK_THROWS_AS(absent.parse_devices(1), fabric::UnavailableError);
  CHECK_THROWS_AS(absent.parse_devices(0), fabric::ConfigError);
  CHECK_THROWS_AS(absent.setup_device(c10::kCPU), fabric::MisuseError);
  absent.manual_seed(3);
  absent.empty_cache();
  CHECK_THROWS_AS(fabric::TorchAccelerator(c10::DeviceType::CPU), fabric::MisuseError);
}
