// What settings, objects and variables come to. Nothing is started here.
#include "fabric/facade/connector_internal.h"

#include <unistd.h>

#include <ATen/Context.h>

#include <fabric/base/log.h>
#include <fabric/config/parse.h>
#include <fabric/strategies/ddp.h>
#include <fabric/strategies/dp.h>
#include <fabric/strategies/single_device.h>

#include "launcher/start/plan.h"
#include "tests/support/catch.h"

using Catch::Contains;
using fabric::ConfigError;
using fabric::Fabric;
using fabric::resolve;

namespace {

using Variables = std::map<std::string, std::string>;

Fabric::Parts with(Variables variables) { return {.env = std::make_shared<fabric::MapEnv>(std::move(variables))}; }

std::string strategy_of(Fabric::Config config, Variables variables = {}) {
  return resolve(std::move(config), with(std::move(variables))).strategy->name();
}

Variables torchrun(int rank, int world) {
  auto r = std::to_string(rank), w = std::to_string(world);
  return {{"TORCHELASTIC_RUN_ID", "x"},
          {"RANK", r},
          {"LOCAL_RANK", r},
          {"WORLD_SIZE", w},
          {"LOCAL_WORLD_SIZE", w},
          {"GROUP_RANK", "0"},
          {"MASTER_ADDR", "127.0.0.1"},
          {"MASTER_PORT", "29500"}};
}

/// What is written to stderr meanwhile.
std::string errors_of(const std::function<void()>& action) {
  int pipe_ends[2];
  REQUIRE(pipe(pipe_ends) == 0);
  int before = dup(2);
  dup2(pipe_ends[1], 2);
  close(pipe_ends[1]);
  action();
  dup2(before, 2);
  close(before);
  std::string text(1 << 16, '\0');
  text.resize(std::max<ssize_t>(0, read(pipe_ends[0], text.data(), text.size())));
  close(pipe_ends[0]);
  return text;
}

}  // namespace

TEST_CASE("the strategy that is chosen when none is named", "[connector]") {
  CHECK(strategy_of({.accelerator = "cpu"}) == "single_device");
  CHECK(strategy_of({.accelerator = "cpu", .devices = 1}) == "single_device");
  CHECK(strategy_of({.accelerator = "cpu", .devices = 2}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu", .devices = 1, .num_nodes = 2}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu"}, torchrun(1, 2)) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu"}, torchrun(0, 1)) == "single_device");
  fabric::log::set_rank(-1);
}

TEST_CASE("names are taken in any case", "[connector]") {
  CHECK(strategy_of({.accelerator = "cpu", .strategy = "DDP", .devices = 2}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu", .strategy = "Auto"}) == "single_device");
}

TEST_CASE("dp on the CPU becomes ddp and says so", "[connector]") {
  for (const char* name : {"dp", "DP"}) {
    auto text = errors_of([&] { CHECK(strategy_of({.accelerator = "cpu", .strategy = name, .devices = 2}) == "ddp"); });
    CHECK_THAT(text, Contains("dp needs several GPUs"));
  }
}

TEST_CASE("variables stand above settings, ours above Lightning's", "[connector]") {
  CHECK(strategy_of({.accelerator = "cpu"}, {{"LT_DEVICES", "3"}}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu"}, {{"LT_DEVICES", "3"}, {"FABRIC_DEVICES", "1"}}) == "single_device");
  CHECK(strategy_of({.accelerator = "cpu"}, {{"LT_STRATEGY", "ddp"}}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu"}, {{"FABRIC_STRATEGY", ""}, {"LT_STRATEGY", "ddp"}}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu"}, {{"FABRIC_STRATEGY", ""},
                                             {"FABRIC_DEVICES", ""},
                                             {"FABRIC_NUM_NODES", ""},
                                             {"FABRIC_PRECISION", ""},
                                             {"FABRIC_ACCELERATOR", ""}}) == "single_device");
  CHECK(resolve({.accelerator = "cpu"}, with({{"LT_PRECISION", "16-true"}, {"FABRIC_PRECISION", "64-true"}}))
            .strategy->precision()
            ->name() == "64-true");
  CHECK(strategy_of({.accelerator = "cpu"}, {{"FABRIC_NUM_NODES", "2"}}) == "ddp");
  CHECK(strategy_of({.accelerator = "cpu"}, {{"LT_NUM_NODES", "2"}}) == "ddp");
  CHECK(strategy_of({.accelerator = "auto"}, {{"LT_ACCELERATOR", "cpu"}, {"FABRIC_DEVICES", "2"}}) == "ddp");
}

TEST_CASE("parts read the variables that the Fabric is given, not those of the process", "[connector]") {
  auto variables = torchrun(0, 2);
  variables["HOME"] = "/home/of/the/map";
  Fabric::Config config{.accelerator = "cpu", .strategy = "ddp_spawn"};
  config.loggers = {fabric::Choice("csv", {{"root_dir", "~/runs"}})};
  auto waiting = resolve(config, with(variables));
  CHECK(waiting.loggers.at(0)->root_dir() == "/home/of/the/map/runs");
  CHECK_FALSE(waiting.strategy->make_launcher());
  // A rank that was started to run a function, by the variables, hands its result to the launcher.
  variables[fabric::kLaunchedVariable] = "1";
  CHECK(resolve(config, with(variables)).strategy->make_launcher());
}

TEST_CASE("what is given twice is refused", "[connector]") {
  using Parts = Fabric::Parts;
  auto refuses = [](const Fabric::Config& config, const Parts& parts) {
    CHECK_THROWS_WITH(resolve(config, parts), Contains("keep one of the two"));
  };
  auto cpu = fabric::make_accelerator("cpu");
  auto half = fabric::make_precision("bf16-true");
  auto io = fabric::make_checkpoint_io("safetensors");
  auto plain = fabric::make_environment("fabric", std::make_shared<fabric::MapEnv>());
  auto ddp = [] { return std::make_shared<fabric::DDPStrategy>(); };
  refuses({.strategy = "ddp"}, {.strategy = ddp()});
  refuses({.accelerator = "cpu"}, {.accelerator = cpu});
  refuses({.precision = "64-true"}, {.precision = half});
  refuses({.environment = "fabric"}, {.environment = plain});

  auto busy = ddp();
  busy->set_precision(half);
  refuses({.accelerator = "cpu", .precision = "64-true"}, {.strategy = busy});
  refuses({}, {.strategy = busy, .precision = half});
  busy = ddp();
  busy->set_checkpoint_io(io);
  refuses({}, {.strategy = busy, .checkpoint_io = io});
  busy = ddp();
  busy->set_accelerator(cpu);
  refuses({}, {.strategy = busy, .accelerator = cpu});
  busy = ddp();
  busy->set_cluster_environment(plain);
  refuses({}, {.strategy = busy, .environment = plain});
  refuses({.environment = "fabric"}, {.strategy = busy});
  busy = ddp();
  busy->set_process_group(fabric::ProcessGroup::single());
  refuses({}, {.strategy = busy, .process_group = fabric::ProcessGroup::single()});
  refuses({.accelerator = "cpu", .devices = 1},
          {.strategy = std::make_shared<fabric::SingleDeviceStrategy>(c10::Device(c10::kCPU))});
}

TEST_CASE("what a strategy object was made with stays", "[connector]") {
  auto meta = std::make_shared<fabric::SingleDeviceStrategy>(c10::Device(c10::kCUDA, 1));
  CHECK_THROWS_WITH(resolve({.accelerator = "cpu"}, {.strategy = meta}), Contains("made with device cuda:1"));

  auto several = std::make_shared<fabric::DataParallelStrategy>(std::vector<c10::Device>{c10::kCPU, c10::kCPU});
  resolve({}, {.strategy = several});
  CHECK(several->devices().size() == 2);

  auto parallel = std::make_shared<fabric::DDPStrategy>();
  auto env = std::make_shared<fabric::MapEnv>(torchrun(1, 2));
  parallel->set_cluster_environment(fabric::make_environment("torchelastic", env));
  resolve({.accelerator = "cpu"}, {.strategy = parallel});
  CHECK(parallel->ranks().rank == 1);
  fabric::log::set_rank(-1);
}

TEST_CASE("a strategy object serves one Fabric", "[connector]") {
  auto strategy = std::make_shared<fabric::DDPStrategy>();
  resolve({.accelerator = "cpu"}, {.strategy = strategy});
  CHECK_THROWS_WITH(resolve({.accelerator = "cpu"}, {.strategy = strategy}), Contains("another Fabric"));
}

TEST_CASE("a group that is given decides rank and size", "[connector]") {
  auto resolved = resolve({.accelerator = "cpu", .devices = 3}, {.process_group = fabric::ProcessGroup::single()});
  REQUIRE(resolved.strategy->name() == "ddp");
  CHECK(resolved.strategy->make_launcher() == nullptr);
  CHECK(resolved.strategy->ranks().world_size == 1);
  CHECK_THROWS_WITH(
      resolve({.accelerator = "cpu", .strategy = "single_device"}, {.process_group = fabric::ProcessGroup::single()}),
      Contains("use ddp"));
}

TEST_CASE("of several ranks one warns", "[connector]") {
  auto warn = [](int rank) {
    return errors_of([&] { resolve({.accelerator = "cpu", .precision = "16-mixed"}, with(torchrun(rank, 2))); });
  };
  CHECK_THAT(warn(0), Contains("16-mixed"));
  CHECK(warn(1).empty());
  fabric::log::set_rank(-1);
}

TEST_CASE("empty parts are refused", "[connector]") {
  CHECK_THROWS_WITH(resolve({.accelerator = "cpu"}, {.callbacks = {nullptr}}), Contains("a callback is null"));
  CHECK_THROWS_WITH(resolve({.accelerator = "cpu"}, {.loggers = {nullptr}}), Contains("a logger is null"));
}

TEST_CASE("how exactly float32 matrices are multiplied is a setting", "[connector]") {
  const auto before = at::globalContext().float32MatmulPrecision();
  resolve({.accelerator = "cpu", .float32_matmul_precision = "high"}, with({}));
  CHECK(at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGH);
  resolve({.accelerator = "cpu"}, with({}));
  CHECK(at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::HIGH);
  CHECK_THROWS_WITH(resolve({.accelerator = "cpu", .float32_matmul_precision = "hihg"}, with({})),
                    Contains("did you mean 'high'"));
  using Precision = at::Float32MatmulPrecision;
  at::globalContext().setFloat32MatmulPrecision(before == Precision::HIGHEST ? "highest"
                                                : before == Precision::HIGH  ? "high"
                                                                             : "medium");
}

TEST_CASE("the help of Fabric's settings names what may be given", "[connector]") {
  const char* words[] = {"train", "--help"};
  const auto help = fabric::parse_or_throw<Fabric::Config>(2, words).output;
  INFO(help);
  for (const char* text : {"how the work is spread: auto", "ddp", "single_device", "bf16-mixed", "torchelastic",
                           "tensorboard", "safetensors, torch", "highest, high, medium", "machines of the job"})
    CHECK(help.find(text) != std::string::npos);
}
