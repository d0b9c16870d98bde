// Two ranks save and load in parts, against raw writes and reads of the same bytes by as many processes.
// As bench_sharded_checkpoint FOLDER: only our side of what the Python peer does, in two lines of seconds.

#include <fcntl.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include <fabric/fabric.h>
#include <fabric/plugins/checkpoint_io/read_options.h>

#include "plugins/checkpoint_io/sharded/save_plan.h"
#include "tests/bench/bench.h"
#include "tests/bench/raw_file.h"
#include "tests/support/free_port.h"

namespace {

namespace fs = std::filesystem;

constexpr int kRanks = 2;
constexpr std::int64_t kTensors = 40, kFloats = 2'500'000;  // 10 MB each
constexpr std::size_t kBytes = kTensors * kFloats * sizeof(float);

fabric::Value::Map make_tensors() {
  fabric::Value::Map tensors;
  for (std::int64_t i = 0; i < kTensors; ++i)
    tensors.append('t' + std::to_string(i), torch::randn({1000, kFloats / 1000}));
  return tensors;
}

/// Times work that all ranks do together, in seconds.
class Together {
 public:
  explicit Together(const fabric::Fabric& fabric) : fabric_(fabric) {}
  template <class Work>
  double time(Work&& work) const {
    fabric_.barrier();
    const auto start = bench::Clock::now();
    work();
    fabric_.barrier();
    return std::chrono::duration<double>(bench::Clock::now() - start).count();
  }

 private:
  const fabric::Fabric& fabric_;
};

struct Best {
  double parts = 1e300, whole = 1e300, raw = 1e300, load = 1e300;
};

Best measure_saves(fabric::Fabric& parts, fabric::Fabric& whole, const fs::path& folder, bool peers_only) {
  const auto tensors = make_tensors();
  const Together together(parts);
  std::vector<char> share(peers_only ? 0 : kBytes / kRanks, 'x');
  const auto rank = std::to_string(parts.global_rank());
  Best best;
  for (int round = 0; round < 5; ++round) {
    best.parts = std::min(best.parts, together.time([&] {
      parts.save(folder / "parts", {{"model", fabric::Value(tensors)}});
    }));
    best.load = std::min(best.load, together.time([&] {
      fabric::State state{{"model", fabric::Value(tensors)}};
      parts.load(folder / "parts", state);
      std::uint64_t sum = 0;
      for (auto& [name, value] : state.at("model").value()->as_map())
        sum += bench::touch(value.as<at::Tensor>().const_data_ptr(), value.as<at::Tensor>().nbytes());
      if (sum == 1) std::abort();
    }));
    if (peers_only) continue;
    best.raw = std::min(best.raw, together.time([&] { bench::raw_write(folder / ("raw" + rank), share); }));
    best.whole = std::min(best.whole, together.time([&] {
      whole.save(folder / "whole", {{"model", fabric::Value(tensors)}});
    }));
  }
  return best;
}

std::uint64_t bytes_from_disk() {
  std::ifstream io("/proc/self/io");
  std::string name;
  for (std::uint64_t value; io >> name >> value;)
    if (name == "read_bytes:") return value;
  return 0;
}

void forget_pages(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    int fd = open(entry.path().c_str(), O_RDONLY);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
}

/// Four ranks, played in turn, write rows; this rank of two reads its rows. Bytes from the disk by bytes of its share.
double share_read(const fs::path& folder, int rank) {
  const auto path = folder / ("four" + std::to_string(rank));
  auto io = fabric::make_checkpoint_io("sharded");
  const std::int64_t rows = 10'000, columns = 2'500;  // 100 MB
  auto whole = torch::randn({rows, columns});
  auto* writer = io->part_writer();
  const auto place = writer->begin(path);
  std::vector<fabric::Value> parts;
  for (std::int64_t i = 0; i < 4; ++i) {
    fabric::StatePart part{fabric::Value::Map{{"weight", whole.slice(0, rows / 4 * i, rows / 4 * (i + 1))}}};
    part.shards.emplace("weight", fabric::Shard{{rows, columns}, {rows / 4 * i, 0}});
    parts.push_back(writer->write(place, part, static_cast<int>(i), 4));
  }
  writer->commit(place, path, parts);
  forget_pages(path);
  const auto before = bytes_from_disk();
  auto mine = torch::empty({rows / 2, columns});
  fabric::read_box(io->open(path).at("weight").as<at::Tensor>(), {rows / 2 * rank, 0}, mine);
  const auto read = bytes_from_disk() - before;
  if (!mine.equal(whole.slice(0, rows / 2 * rank, rows / 2 * (rank + 1)))) std::abort();
  return static_cast<double>(read) / static_cast<double>(mine.nbytes());
}

void load_rows(const fs::path& folder) {
  std::vector<char> bytes(kBytes);
  std::uint64_t sink = 0;
  bench::raw_write(folder / "raw", bytes);
  for (bool verify : {true, false}) {
    auto io = fabric::make_checkpoint_io("sharded", {.verify = verify});
    auto load = bench::compare(
        [&] {
          auto loaded = io->load(folder / "parts");
          for (auto& [name, value] : loaded.at("model").as_map())
            sink += bench::touch(value.as<at::Tensor>().const_data_ptr(), value.as<at::Tensor>().nbytes());
        },
        [&] { sink += bench::raw_read(folder / "raw", bytes); }, 1, 7);
    bench::row(std::string("load 400 MB in parts, ") + (verify ? "sums compared" : "sums not compared") + " / raw read",
               load.ours / 1e3, load.theirs / 1e3, "ms", verify ? 1.3 : 1.15);
  }
  if (sink == 1) std::abort();
}

// Ten thousand tensors, each spread over eight ranks: what each rank plans, and what rank 0 makes of it.
void plan_rows() {
  using namespace fabric::checkpoint;
  std::vector<std::vector<NamedTensor>> tensors(8);
  std::vector<std::map<std::string, fabric::Shard>> shards(8);
  auto rows = torch::zeros({2, 4});
  for (int rank = 0; rank < 8; ++rank)
    for (int i = 0; i < 10'000; ++i) {
      const std::string name = "model.layers." + std::to_string(i) + ".weight";
      tensors[rank].push_back({name, rows});
      shards[rank].emplace(name, fabric::Shard{{16, 4}, {2 * rank, 0}});
    }
  std::vector<PartPlan> plans(8);
  IndexPlan index;
  double each = 0, all = 0;
  for (bool again : {false, true}) {
    std::vector<fabric::Value> parts;
    for (int rank = 0; rank < 8; ++rank) {
      const double time = bench::time_us([&] { plans[rank].update(tensors[rank], shards[rank], rank, 8); }, 1);
      each = rank == 0 ? time : std::min(each, time);
      fabric::Value part = fabric::Value::Map{{"file", "f"}, {"bytes", 1}};
      part["sums"] = packed_sums(std::vector<std::uint32_t>(plans[rank].mine().size(), 7));
      if (!again) part["chunks"] = plans[rank].chunks();
      parts.push_back(std::move(part));
    }
    all = bench::time_us([&] { index.index_of(parts); }, 1);
    bench::figure(std::string("plan of 10,000 tensors on 8 ranks, ") + (again ? "again" : "first"), (each + all) / 1e3,
                  "ms", again ? 5 : 50);
    std::printf("    of that on each rank %.2f ms, on rank 0 %.2f ms\n", each / 1e3, all / 1e3);
  }
}

void run_rank(const fs::path& folder, bool peers_only) {
  at::set_num_threads(1);
  fabric::Fabric parts({.accelerator = "cpu", .strategy = "ddp", .devices = kRanks, .checkpoint_io = "sharded"});
  parts.launch();
  fabric::Fabric whole({.accelerator = "cpu", .strategy = "ddp", .devices = kRanks});
  whole.launch();
  const auto best = measure_saves(parts, whole, folder, peers_only);
  const auto mine = parts.global_rank();
  if (peers_only) {
    if (mine == 0) std::printf("save %.4f\nload %.4f\n", best.parts, best.load);
    return;
  }
  if (mine == 0) {
    bench::header();
    bench::row("save 400 MB in parts, 2 ranks / raw writes + fsync", best.parts * 1e3, best.raw * 1e3, "ms", 1.1);
    bench::row("the same / one rank writing all", best.parts * 1e3, best.whole * 1e3, "ms", 0.95);
    load_rows(folder);
  }
  parts.barrier();
  auto shares = parts.all_gather(torch::tensor(share_read(folder, mine)));
  if (mine == 0) {
    bench::figure("read on 2 ranks what 4 wrote: bytes / share", shares.max().item<double>(), "x", 1.02);
    plan_rows();
  }
  parts.barrier();
}

}  // namespace

int main(int count, char** arguments) {
  const bool peers_only = count > 1;
  const fs::path folder =
      peers_only ? fs::path(arguments[1]) : fs::temp_directory_path() / ("fabric_bench_" + std::to_string(getpid()));
  fs::create_directories(folder);
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", std::to_string(free_port()).c_str(), 1);
  for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) setenv(name, std::to_string(kRanks).c_str(), 1);
  int failed = 0;
  for (int rank = 0; rank < kRanks; ++rank)
    if (fork() == 0) {
      for (const char* name : {"RANK", "LOCAL_RANK"}) setenv(name, std::to_string(rank).c_str(), 1);
      try {
        run_rank(folder, peers_only);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        std::fflush(nullptr);
        _exit(1);
      }
      std::fflush(nullptr);
      _exit(0);
    }
  for (int status; wait(&status) > 0;) failed |= status;
  if (!peers_only) fs::remove_all(folder);
  return failed != 0;
}
