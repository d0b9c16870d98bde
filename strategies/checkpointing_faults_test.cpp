// What the system refuses to one rank of those that save in parts: an error on all of them, and the old checkpoint
// stays.
#include <fabric/strategies/checkpointing.h>

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>

#include <torch/torch.h>

#include <fabric/base/error.h>
#include <fabric/fabric.h>

#include "tests/support/failure_of.h"
#include "tests/support/group_of_ranks.h"

using fabric::CheckpointContext;
using fabric::CheckpointError;
using fabric::State;
using fabric::StateAccess;
using fabric::Value;

namespace {

namespace fs = std::filesystem;

/// While it lives, this process can write no larger file: what a full disk is to one rank alone.
class SmallFiles {
 public:
  explicit SmallFiles(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit small{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
  }
  ~SmallFiles() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

std::vector<std::string> all_names(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

RANKS_TEST("what one rank cannot write is an error on all, and the old checkpoint stays", "[checkpoint][ranks][bad]",
           2) {
  auto group = ranks::group_from_env();
  const fs::path folder =
      group
          .broadcast_value(Value((fs::temp_directory_path() / ("fabric_faults_" + std::to_string(getpid()))).string()),
                           0)
          .as_string();
  if (rank == 0) fs::create_directory(folder);
  group.barrier();
  auto io = fabric::make_checkpoint_io("sharded");
  auto access = StateAccess::plain();
  access.rank = rank;
  auto save = [&](const fs::path& path, double number, bool async) {
    Value::Map model;
    for (const char* name : {"first", "second"}) model.append(name, torch::full({1 << 16}, number));
    State state{{"model", Value(model)}, {"own", fabric::PerRank(number)}};
    auto saving = fabric::save_state({group, io, access}, path, state, {.async = async});
    saving->wait();
  };
  auto holds = [&](const fs::path& path, double number) {
    auto loaded = io->load(path).at("model");
    return loaded.at("first").as<at::Tensor>().eq(number).all().item<bool>() &&
           loaded.at("second").as<at::Tensor>().eq(number).all().item<bool>();
  };
  save(folder / "c", 1, false);
  RANK_CHECK(holds(folder / "c", 1));

  for (bool async : {false, true})
    for (int poor = 0; poor < 2; ++poor) {
      auto failure = failure_of<CheckpointError>([&] {
        std::optional<SmallFiles> limit;
        if (rank == poor) limit.emplace(100'000);
        save(folder / "c", 2, async);
      });
      RANK_CHECK((rank == poor || says(failure, "rank " + std::to_string(poor))) && says(failure, "File too large"));
      RANK_CHECK(says(failure, "shard-0000" + std::to_string(poor) + "-of-00002.safetensors"));
      RANK_CHECK(holds(folder / "c", 1));
      group.barrier();
      RANK_CHECK(all_names(folder) == std::vector<std::string>{"c"});
      group.barrier();
    }

  // A name below a file, and one that somebody else is saving to, which has to be let alone.
  if (rank == 0) std::ofstream(folder / "file") << "text";
  group.barrier();
  RANK_CHECK(says(failure_of<CheckpointError>([&] { save(folder / "file/c", 2, false); }), "file"));
  std::string place;
  auto other = fabric::make_checkpoint_io("sharded");
  if (rank == 1) place = other->part_writer()->begin(folder / "c");
  group.barrier();
  RANK_CHECK(says(failure_of<CheckpointError>([&] { save(folder / "c", 2, false); }), "another process is saving"));
  RANK_CHECK(holds(folder / "c", 1));
  group.barrier();
  if (rank == 1) other->part_writer()->discard(place);
  group.barrier();
  RANK_CHECK(all_names(folder) == (std::vector<std::string>{"c", "file"}));
  group.barrier();

  // A file of that name gives way, as it does in every other format.
  save(folder / "file", 3, false);
  save(folder / "c", 4, true);
  RANK_CHECK(holds(folder / "file", 3) && holds(folder / "c", 4));
  group.barrier();
  if (rank == 0) fs::remove_all(folder);
}
