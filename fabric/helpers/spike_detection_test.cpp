#include <fabric/helpers/spike_detection.h>

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>

#include <fabric/fabric.h>
#include <fabric/helpers/shared_filesystem.h>
#include <fabric/helpers/throughput_monitor.h>

#include "tests/support/captured_log.h"
#include "tests/support/ranks.h"

using fabric::SpikeDetection;
using fabric::Value;

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "fabric_spike_XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

std::vector<bool> run(SpikeDetection& detection, std::vector<double> losses) {
  std::vector<bool> spikes;
  for (double loss : losses) spikes.push_back(detection.is_spike(loss));
  return spikes;
}

constexpr double kInf = std::numeric_limits<double>::infinity();

// A logger that keeps what it gets.
struct Recorder : fabric::Logger {
  fabric::Metrics last;
  std::optional<std::int64_t> step;
  std::string name() const override { return "recorder"; }
  std::string version() const override { return ""; }
  std::string root_dir() const override { return ""; }
  std::string log_dir() const override { return ""; }
  void log_metrics(const fabric::Metrics& metrics, std::optional<std::int64_t> at) override {
    last = metrics, step = at;
  }
  void log_hyperparams(const fabric::Tree&) override {}
};

}  // namespace

TEST_CASE("A loss far above the mean is a spike and stays out of the mean", "[spike]") {
  SpikeDetection detection;
  CHECK(run(detection, {1, 1, 2.9, 100, 1.5, kInf, 0.1}) ==
        std::vector<bool>{false, false, false, true, false, true, false});
  CHECK(detection.mean() == Approx((1 + 1 + 2.9 + 1.5 + 0.1) / 5));
}

TEST_CASE("A better loss is never a spike, in either mode", "[spike]") {
  SpikeDetection least({.rtol = 0.5});
  CHECK(run(least, {10, 1, 9}) == std::vector<bool>{false, false, true});
  SpikeDetection most({.mode = "max", .rtol = 0.5});
  CHECK(run(most, {10, 100, 9}) == std::vector<bool>{false, false, true});
}

TEST_CASE("Both tolerances must be exceeded, those that are given", "[spike]") {
  SpikeDetection both({.atol = 5, .rtol = 1});
  CHECK(run(both, {1, 3, 20}) == std::vector<bool>{false, false, true});
  SpikeDetection absolute({.atol = 5, .rtol = std::nullopt});
  CHECK(run(absolute, {100, 104, 110}) == std::vector<bool>{false, false, true});
  SpikeDetection infinite_only({.rtol = std::nullopt});
  CHECK(run(infinite_only, {1, 1e9, std::nan("")}) == std::vector<bool>{false, false, true});
  SpikeDetection any_value({.finite_only = false});
  CHECK(run(any_value, {1, std::nan("")}) == std::vector<bool>{false, false});
}

TEST_CASE("Values that are not finite stay out of the mean, where they are no spikes as well", "[spike]") {
  for (double odd : {std::nan(""), -kInf}) {
    SpikeDetection detection({.finite_only = false});
    CHECK(run(detection, {1, odd, 1.5, 100, 2}) == std::vector<bool>{false, false, false, true, false});
    CHECK(detection.mean() == Approx((1 + 1.5 + 2) / 3));
  }
  SpikeDetection upwards({.finite_only = false});
  CHECK(run(upwards, {1, kInf, 1.5}) == std::vector<bool>{false, true, false});
  SpikeDetection most({.mode = "max", .finite_only = false});
  CHECK(run(most, {1, kInf, -kInf, 0.5, -100}) == std::vector<bool>{false, false, true, false, true});
  SpikeDetection early({.warmup = 2, .finite_only = false});
  CHECK(run(early, {-kInf, std::nan(""), 1, 100}) == std::vector<bool>{false, false, false, true});
}

TEST_CASE("The warm-up passes everything; the window slides", "[spike]") {
  SpikeDetection detection({.window = 2, .warmup = 3});
  CHECK(run(detection, {1, 1000, kInf, 400}) == std::vector<bool>{false, false, false, false});
  CHECK(detection.mean() == 700);
}

TEST_CASE("Settings that make no sense are refused", "[spike]") {
  CHECK_THROWS_AS(SpikeDetection({.mode = "best"}), fabric::ConfigError);
  CHECK_THROWS_AS(SpikeDetection({.window = 0}), fabric::ConfigError);
  CHECK_THROWS_AS(SpikeDetection({.rtol = std::nullopt, .finite_only = false}), fabric::ConfigError);
}

TEST_CASE("Its state goes on where it was saved", "[spike]") {
  SpikeDetection first, second;
  run(first, {1, 2, 3});
  second.load_state_dict(first.state_dict());
  CHECK(second.mean() == 2);
  CHECK(second.is_spike(100));
  CHECK_FALSE(second.is_spike(2.5));
}

TEST_CASE("A spike notes the batches and throws; the file grows", "[spike]") {
  Folder folder;
  auto path = folder.path / "new" / "skip.json";
  auto detection = std::make_shared<SpikeDetection>(SpikeDetection::Config{.exclude_batches_path = path});
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"}, {.callbacks = {detection}});
  CHECK(fabric::batches_to_skip(path).empty());
  fabric.call("on_train_batch_end", {{"loss", 1.0}, {"batch_idx", 0}});
  CHECK_THROWS_AS(fabric.call("on_train_batch_end", {{"loss", 50.0}, {"batch_idx", 1}}), fabric::TrainingSpike);
  CHECK(fabric::batches_to_skip(path) == std::vector<std::int64_t>{0, 1});
  try {
    detection->check(fabric, kInf, 2);
    FAIL("no spike");
  } catch (const fabric::TrainingSpike& spike) {
    CHECK(spike.batch() == 2);
  }
  CHECK(fabric::batches_to_skip(path) == std::vector<std::int64_t>{0, 1, 2});
}

TEST_CASE("A spike's text gives the numbers as they are; one that cannot be noted is another Error", "[spike]") {
  Folder folder;
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  SpikeDetection noted({.exclude_batches_path = folder.path / "skip.json"});
  noted.check(fabric, 1.5, 0);
  CHECK_THROWS_WITH(noted.check(fabric, 50.25, 1),
                    Catch::Contains("50.25 on this rank") && Catch::Contains("was 1.5."));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);

  SpikeDetection nowhere({.exclude_batches_path = folder.path / "skip.json" / "below.json"});
  nowhere.check(fabric, 1.5, 0);
  CHECK_THROWS_WITH(nowhere.check(fabric, 50.25, 1), Catch::Contains("below.json' cannot be written"));
  CHECK_THROWS_AS(fabric::batches_to_skip(std::string(300, 'x') + ".json"), fabric::Error);
}

TEST_CASE("The throughput monitor logs through Fabric", "[throughput]") {
  auto recorder = std::make_shared<Recorder>();
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"}, {.loggers = {recorder}});
  fabric::ThroughputMonitor monitor(fabric, {.available_flops = 10, .window_size = 2});
  monitor.update({.time = 1, .batches = 1, .samples = 2, .flops = 5});
  monitor.update({.time = 2, .batches = 2, .samples = 4, .flops = 5});
  auto metrics = monitor.compute_and_log();
  CHECK(metrics.at("device/mfu") == 0.5);
  CHECK(recorder->last == metrics);
  CHECK(recorder->step == 1);
  monitor.compute_and_log(7);
  CHECK(recorder->step == 7);
  // No peak is known for a CPU.
  CHECK_FALSE(fabric::ThroughputMonitor(fabric).available_flops().has_value());
}

namespace {

// A CPU that says it is a GPU.
struct NamedDevice : fabric::Accelerator {
  explicit NamedDevice(std::string device) : device(std::move(device)) {}
  std::string name() const override { return "cpu"; }
  c10::DeviceType device_type() const override { return c10::kCPU; }
  bool is_available() const override { return true; }
  std::string unavailable_reason() const override { return ""; }
  int auto_device_count() const override { return 1; }
  std::vector<int> parse_devices(const fabric::DeviceSpec&) const override { return {0}; }
  std::vector<c10::Device> get_parallel_devices(const std::vector<int>&) const override { return {c10::kCPU}; }
  void setup_device(c10::Device) override {}
  void synchronize(c10::Device) override {}
  MemoryStats memory_stats(c10::Device) const override { return {}; }
  std::string device_name(c10::Device) const override { return device; }
  void manual_seed(std::uint64_t) override {}
  std::string device;
};

std::optional<double> peak_on(const std::string& device, const std::string& precision) {
  fabric::Fabric fabric({.strategy = "single_device", .devices = 1, .precision = precision},
                        {.accelerator = std::make_shared<NamedDevice>(device)});
  return fabric::ThroughputMonitor(fabric).available_flops();
}

}  // namespace

TEST_CASE("The peak goes by the precision and by that of float32 products", "[throughput]") {
  CHECK(peak_on("NVIDIA A100-SXM4-80GB", "32-true") == 19.5e12);
  CHECK(peak_on("NVIDIA A100-SXM4-80GB", "64-true") == 19.5e12);
  CHECK(peak_on("NVIDIA A100-SXM4-80GB", "bf16-mixed") == 312e12);
  at::globalContext().setFloat32MatmulPrecision("high");
  const auto tf32 = peak_on("NVIDIA A100-SXM4-80GB", "32-true"), volta = peak_on("Tesla V100-SXM2-16GB", "32-true");
  at::globalContext().setFloat32MatmulPrecision("highest");
  CHECK(tf32 == 156e12);
  CHECK(volta == 15.7e12);  // it has no TF32
  const auto said = fabric::testing::log_of([] { CHECK_FALSE(peak_on("NVIDIA X9000", "32-true").has_value()); });
  CHECK_THAT(said, Catch::Contains("'NVIDIA X9000' for float32 is not known") && Catch::Contains("available_flops"));
}

TEST_CASE("One process always shares its files with itself", "[shared]") {
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
  CHECK(fabric::is_shared_filesystem(*fabric.strategy(), "/does/not/exist"));
}

RANKS_TEST("A spike on one rank stops all", "[spike][ranks]", 2) {
  Folder folder;
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = world_size});
  fabric.launch();
  SpikeDetection detection({.exclude_batches_path = folder.path / "skip.json"});
  detection.check(fabric, 1.0, 0);
  bool stopped = false;
  try {
    detection.check(fabric, rank == 1 ? 100.0 : 1.0, 1);
  } catch (const fabric::TrainingSpike&) {
    stopped = true;
  }
  RANK_CHECK(stopped);
  RANK_CHECK(fabric::batches_to_skip(folder.path / "skip.json").size() == (rank == 0 ? 2 : 0));
}

RANKS_TEST("A loss counts on no rank when one of them spiked or is not finite", "[spike][ranks]", 2) {
  Folder folder;
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = world_size});
  fabric.launch();
  SpikeDetection detection({.exclude_batches_path = folder.path / "skip.json"});
  detection.check(fabric, 1.0, 0);
  bool stopped = false;
  try {
    detection.check(fabric, rank == 1 ? 100.0 : 2.0, 1);
  } catch (const fabric::TrainingSpike&) {
    stopped = true;
  }
  RANK_CHECK(stopped);
  RANK_CHECK(detection.mean() == 1);
  SpikeDetection lenient({.finite_only = false, .exclude_batches_path = folder.path / "skip.json"});
  lenient.check(fabric, 1.0, 0);
  lenient.check(fabric, rank == 1 ? std::nan("") : 2.0, 1);
  RANK_CHECK(lenient.mean() == 1);
  lenient.check(fabric, 2.0, 2);
  RANK_CHECK(lenient.mean() == 1.5);
}

RANKS_TEST("Ranks find out whether they share files", "[shared][ranks]", 2) {
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = world_size});
  fabric.launch();
  Folder own;
  auto all = fabric.broadcast(own.path.string()).as_string();
  auto& strategy = *fabric.strategy();
  // What it was tried with is gone when any of the ranks returns.
  for (int i = 0; i < 50; ++i) {
    RANK_CHECK(fabric::is_shared_filesystem(strategy, all));
    RANK_CHECK(std::filesystem::is_empty(all));
    fabric.barrier();
  }
  RANK_CHECK(!fabric::is_shared_filesystem(strategy, own.path));
  bool missing = false;
  try {
    fabric::is_shared_filesystem(strategy, "/does/not/exist");
  } catch (const fabric::Error&) {
    missing = true;
  }
  RANK_CHECK(missing);
  fabric.barrier();
}
