// One checkpoint by several ranks, each of which holds a part of the state.
#include <fabric/strategies/checkpointing.h>

#include <torch/torch.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/fabric.h>

#include "tests/support/failure_of.h"
#include "tests/support/group_of_ranks.h"

using fabric::CheckpointContext;
using fabric::CheckpointError;
using fabric::ProcessGroup;
using fabric::Shard;
using fabric::State;
using fabric::StateAccess;
using fabric::StatePart;
using fabric::Value;

namespace {

namespace fs = std::filesystem;

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

at::Tensor whole_weight() { return torch::arange(35, torch::kFloat).reshape({7, 5}); }

/// `weight` is spread over the ranks along its first dimension, `bias` is whole everywhere. `strided`: a rank has every
/// n-th row, which lie apart in the whole.
struct Spread : torch::nn::Module {
  Spread(int rank, int world_size, bool strided = false) {
    auto begin = 7 * rank / world_size, end = 7 * (rank + 1) / world_size;
    shard = {{7, 5}, {begin, 0}};
    if (strided)
      for (std::int64_t row = rank; row < 7; row += world_size)
        shard.boxes.push_back({{row / world_size, 0}, {row, 0}, {1, 5}});
    auto rows = strided ? whole_weight().slice(0, rank, 7, world_size) : whole_weight().slice(0, begin, end);
    weight = register_parameter("weight", rows.clone());
    bias = register_parameter("bias", torch::full({3}, 2.5));
  }
  fabric::ShardOf shard_of() const {
    return [this](const at::Tensor& tensor) { return tensor.is_same(weight) ? std::optional(shard) : std::nullopt; };
  }
  Shard shard;
  at::Tensor weight, bias;
};

StateAccess access_of(const Spread& spread, int rank) {
  StateAccess access = StateAccess::plain();
  auto shard_of = spread.shard_of();
  access.get_module = [=](torch::nn::Module& module) {
    return StatePart{fabric::module_state_dict(module), fabric::module_shards(module, shard_of)};
  };
  access.set_module = [=](torch::nn::Module& module, const Value& state, bool strict) {
    fabric::load_module_state_dict(module, state, strict, shard_of);
  };
  access.check_module = [=](torch::nn::Module& module, const Value& state) {
    fabric::check_module_state_dict(module, state, shard_of);
  };
  access.get_optimizer = [=](torch::optim::Optimizer& optimizer) {
    return StatePart{fabric::optimizer_state_dict(optimizer), fabric::optimizer_shards(optimizer, shard_of)};
  };
  access.set_optimizer = [=](torch::optim::Optimizer& optimizer, const Value& state) {
    fabric::load_optimizer_state_dict(optimizer, state, shard_of);
  };
  access.check_optimizer = [=](torch::optim::Optimizer& optimizer, const Value& state) {
    fabric::check_optimizer_state_dict(optimizer, state, shard_of);
  };
  access.rank = rank;
  return access;
}

/// The gradient of every element is its own value, so that each rank's moments are parts of what one rank would have.
void step(Spread& spread, torch::optim::Optimizer& optimizer) {
  optimizer.zero_grad();
  (spread.weight.square().sum() / 2 + spread.bias.square().sum() / 2).backward();
  optimizer.step();
}

/// One folder for all ranks; rank 0 makes and removes it.
struct Folder {
  explicit Folder(const ProcessGroup& of) : group(of) {
    auto number = group.broadcast_value(Value(static_cast<std::int64_t>(getpid())), 0).as_int();
    path = fs::temp_directory_path() / ("fabric_parts_" + std::to_string(number));
    if (group.rank() == 0) fs::create_directories(path);
    group.barrier();
  }
  ~Folder() {
    std::error_code ignored;
    if (group.rank() == 0) fs::remove_all(path, ignored);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
  ProcessGroup group;
  fs::path path;
};

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

using Sgd = torch::optim::SGD;
using Adam = torch::optim::Adam;

/// A format in parts: PLACE/part-RANK, and PATH when it is committed.
class PartsIO : public fabric::CheckpointIO, public fabric::PartWriter {
 public:
  std::string name() const override { return "parts"; }
  void save(const Value&, const fs::path&) override { throw CheckpointError("this format is written in parts"); }
  Value load(const fs::path& path) override {
    Value::List parts;
    for (int rank = 0; fs::exists(path / part_name(rank)); ++rank)
      parts.push_back(fabric::make_checkpoint_io()->load(path / part_name(rank)));
    return parts;
  }
  fabric::PartWriter* part_writer() override { return this; }

  std::string begin(const fs::path& path) override {
    auto place = path.string() + ".partial";
    fs::create_directories(place);
    return place;
  }
  Value write(const std::string& place, const StatePart& part, int rank, int world_size) override {
    while (hold) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (fails) throw CheckpointError("no space on this rank's disk");
    fabric::make_checkpoint_io()->save(part.values, fs::path(place) / part_name(rank));
    return Value::Map{{"rank", rank}, {"world", world_size}, {"shards", static_cast<std::int64_t>(part.shards.size())}};
  }
  void commit(const std::string& place, const fs::path& path, const std::vector<Value>& parts) override {
    committed = parts;
    fs::rename(place, path);
  }
  void discard(const std::string& place) noexcept override {
    std::error_code ignored;
    fs::remove_all(place, ignored);
  }
  static std::string part_name(int rank) { return "part-" + std::to_string(rank) + ".safetensors"; }

  std::atomic<bool> hold = false;
  bool fails = false;
  std::vector<Value> committed;
};

/// A tensor in a file that counts how much of it is read.
struct Counted : fabric::StoredTensor {
  explicit Counted(at::Tensor content) : content(std::move(content)) {}
  void read(at::IntArrayRef offsets, at::Tensor& into) const override {
    elements += into.numel();
    fabric::read_box(content, offsets, into);
  }
  at::Tensor content;
  mutable std::int64_t elements = 0;
};

}  // namespace

TEST_CASE("a stored tensor has shape and type, and its content wherever it is moved", "[checkpoint][sharding]") {
  auto content = torch::randn({4, 6});
  auto counted = std::make_shared<Counted>(content);
  std::weak_ptr<Counted> alive = counted;
  auto stored = fabric::make_stored_tensor({4, 6}, at::kFloat, counted);
  counted.reset();
  CHECK((stored.is_meta() && stored.sizes() == at::IntArrayRef({4, 6}) && stored.scalar_type() == at::kFloat));
  Value tree = Value::Map{{"a", Value::List{stored, 3, content}}};
  stored.reset();
  Value copy = tree;
  tree = {};
  auto in = fabric::in_memory(copy).at("a").as_list();
  CHECK(torch::equal(in[0].as<at::Tensor>(), content));
  CHECK(in[2].as<at::Tensor>().is_same(content));
  auto box = torch::zeros({2, 3}, torch::kDouble);
  fabric::read_box(copy.at("a").as_list()[0].as<at::Tensor>(), {1, 3}, box);
  CHECK(torch::equal(box, content.slice(0, 1, 3).slice(1, 3).to(torch::kDouble)));
  CHECK(alive.lock()->elements == 24 + 6);
  CHECK_THROWS_AS(fabric::read_box(content, {3, 0}, box), fabric::MisuseError);
  CHECK(fabric::stored_in(content) == nullptr);
  CHECK(fabric::stored_in(torch::empty({2}, torch::kMeta)) == nullptr);
  copy = {};
  CHECK(alive.expired());
}

BOTH_BACKENDS_TEST("parts become the file that one rank would have written, bit for bit", "[checkpoint][ranks]", 3) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  auto io = fabric::make_checkpoint_io();
  auto write = [&](int part, int of, const fs::path& name, const ProcessGroup& ranks) {
    Spread spread(part, of);
    Adam optimizer(spread.parameters(), 0.1);
    step(spread, optimizer);
    step(spread, optimizer);
    CheckpointContext context{ranks, io, access_of(spread, ranks.rank())};
    fabric::save_state(context, name, {{"model", spread}, {"optimizer", optimizer}, {"epoch", 3}});
  };
  write(rank, world_size, folder.path / "three", group);
  if (rank == 0) write(0, 1, folder.path / "one", ProcessGroup::single());
  group.barrier();
  RANK_CHECK(bytes_of(folder.path / "three") == bytes_of(folder.path / "one"));

  // Any number of ranks takes it up again, each its own rows.
  for (int of : {3, 1, 2, 5}) {
    auto part = rank % of;
    Spread expected(part, of), loaded(part, of);
    Adam optimizer(loaded.parameters(), 0.2), other(expected.parameters(), 0.1);
    step(expected, other);
    step(expected, other);
    State state{{"model", loaded}, {"optimizer", optimizer}, {"epoch", 0}};
    CheckpointContext context{group, io, access_of(loaded, rank)};
    fabric::load_state(context, folder.path / "three", &state);
    RANK_CHECK(torch::equal(loaded.weight, expected.weight) && torch::equal(loaded.bias, expected.bias));
    step(loaded, optimizer);
    step(expected, other);
    RANK_CHECK(torch::equal(loaded.weight, expected.weight));
    RANK_CHECK(state.at("epoch").value()->as_int() == 3);
  }
  group.barrier();
}

RANKS_TEST("only rank 0 holds whole tensors, and each rank reads only its rows", "[checkpoint][ranks]", 2) {
  auto group = ranks::group_from_env();
  struct Recording : fabric::CheckpointIO {
    std::string name() const override { return "recording"; }
    void save(const Value& values, const fs::path&) override { saved = values; }
    Value load(const fs::path&) override { return {}; }
    Value open(const fs::path&) override {
      counted = std::make_shared<Counted>(whole_weight());
      return Value::Map{{"model", Value::Map{{"weight", fabric::make_stored_tensor({7, 5}, at::kFloat, counted)},
                                             {"bias", torch::ones({3})}}}};
    }
    Value saved;
    std::shared_ptr<Counted> counted;
  };
  auto io = std::make_shared<Recording>();
  Spread spread(rank, world_size);
  CheckpointContext context{group, io, access_of(spread, rank)};
  fabric::save_state(context, "x", {{"model", spread}});
  RANK_CHECK(io->saved.is_null() == (rank != 0));
  if (rank == 0) RANK_CHECK(torch::equal(io->saved.at("model").at("weight").as<at::Tensor>(), whole_weight()));
  {
    torch::NoGradGuard no_grad;
    spread.weight.zero_();
  }
  State state{{"model", spread}};
  fabric::load_state(context, "x", &state);
  RANK_CHECK(io->counted->elements == spread.weight.numel());
  RANK_CHECK(
      torch::equal(spread.weight, whole_weight().slice(0, spread.shard.offsets[0]).slice(0, 0, spread.weight.size(0))));
  RANK_CHECK(spread.bias.mean().item<double>() == 1);
  group.barrier();
}

BOTH_BACKENDS_TEST("a rank's part may be several boxes", "[checkpoint][ranks]", 3) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  for (const char* format : {"safetensors", "sharded"}) {
    auto io = fabric::make_checkpoint_io(format);
    auto write = [&](int part, int of, bool strided, const fs::path& name, const ProcessGroup& ranks) {
      Spread spread(part, of, strided);
      Adam optimizer(spread.parameters(), 0.1);
      step(spread, optimizer);
      CheckpointContext context{ranks, io, access_of(spread, ranks.rank())};
      fabric::save_state(context, name, {{"model", spread}, {"optimizer", optimizer}});
    };
    const auto three = folder.path / (std::string("three.") + format);
    write(rank, world_size, true, three, group);
    if (rank == 0 && std::string(format) == "safetensors") {
      write(0, 1, false, folder.path / "one", ProcessGroup::single());
      RANK_CHECK(bytes_of(three) == bytes_of(folder.path / "one"));
    }
    group.barrier();
    for (int of : {3, 1, 2})
      for (bool strided : {true, false}) {
        auto part = rank % of;
        Spread expected(part, of, strided), loaded(part, of, strided);
        Adam optimizer(loaded.parameters(), 0.2), other(expected.parameters(), 0.1);
        step(expected, other);
        State state{{"model", loaded}, {"optimizer", optimizer}};
        CheckpointContext context{group, io, access_of(loaded, rank)};
        fabric::load_state(context, three, &state);
        RANK_CHECK(torch::equal(loaded.weight, expected.weight));
        step(loaded, optimizer);
        step(expected, other);
        RANK_CHECK(torch::equal(loaded.weight, expected.weight));
      }
    auto gap = failure_of<CheckpointError>([&] {
      Spread spread(rank, world_size, true);
      if (rank == 1) spread.shard.boxes.pop_back();
      fabric::save_state({group, io, access_of(spread, rank)}, folder.path / "gap", {{"model", spread}});
    });
    RANK_CHECK(has(gap, "'model.weight'") && has(gap, "leave elements out") && !fs::exists(folder.path / "gap"));
    group.barrier();
  }
}

BOTH_BACKENDS_TEST("replicas are taken once; parts that are missing or overlap are an error on all",
                   "[checkpoint][ranks]", 3) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  auto io = fabric::make_checkpoint_io();
  auto save = [&](int part, int of, std::optional<std::vector<std::int64_t>> offsets = {}) {
    Spread spread(part, of);
    if (offsets) spread.shard.offsets = *offsets;
    fabric::save_state({group, io, access_of(spread, rank)}, folder.path / "file", {{"model", spread}});
  };
  save(rank % 2, 2);
  RANK_CHECK(torch::equal(io->load(folder.path / "file").at("model").at("weight").as<at::Tensor>(), whole_weight()));
  auto kept = bytes_of(folder.path / "file");
  auto missing = failure_of<CheckpointError>([&] { save(0, 2); });
  RANK_CHECK(has(missing, "'model.weight'") && has(missing, "parts are missing"));
  auto overlap = failure_of<CheckpointError>([&] { save(rank, 3, std::vector<std::int64_t>{rank, 0}); });
  RANK_CHECK(has(overlap, "overlap") && has(overlap, "on rank 2"));
  group.barrier();
  RANK_CHECK(bytes_of(folder.path / "file") == kept);
  group.barrier();
}

BOTH_BACKENDS_TEST("a format in parts: every rank writes its own, one commit, all or nothing", "[checkpoint][ranks]",
                   2) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  auto io = std::make_shared<PartsIO>();
  Spread spread(rank, world_size);
  CheckpointContext context{group, io, access_of(spread, rank)};
  int after = 0;
  auto save = [&](const char* name, bool async) {
    return fabric::save_state(context, folder.path / name, {{"model", spread}, {"own", fabric::PerRank(rank)}},
                              {.async = async, .then = [&] { ++after; }});
  };
  save("plain", false);
  RANK_CHECK(after == (rank == 0));
  group.barrier();
  auto parts = io->load(folder.path / "plain").as_list();
  RANK_CHECK(parts.size() == 2);
  for (int i = 0; i < 2; ++i) {
    RANK_CHECK(parts[i].at("own").as_int() == i);
    RANK_CHECK(parts[i].at("model").at("weight").as<at::Tensor>().size(0) == (i == 0 ? 3 : 4));
  }
  if (rank == 0) RANK_CHECK(io->committed.size() == 2 && io->committed[1].at("rank").as_int() == 1);

  // Beside the training: the content of the call, and no checkpoint before every part is durable.
  io->hold = true;
  auto saving = save("beside", true);
  {
    torch::NoGradGuard no_grad;
    spread.weight.zero_();
  }
  group.barrier();
  RANK_CHECK(!saving->ended() && !fs::exists(folder.path / "beside"));
  group.barrier();
  io->hold = false;
  saving->wait();
  saving->wait();
  group.barrier();
  parts = io->load(folder.path / "beside").as_list();
  RANK_CHECK(parts[1].at("model").at("weight").as<at::Tensor>().sum().item<double>() > 0);

  for (bool async : {false, true}) {
    io->fails = rank == 1;
    auto text = failure_of<CheckpointError>([&] { save("lost", async)->wait(); });
    RANK_CHECK(has(text, "no space on this rank's disk") && (rank == 1 || has(text, "rank 1: ")));
    group.barrier();
    RANK_CHECK(folder.names() == std::vector<std::string>({"beside", "plain"}));
    group.barrier();
  }
  io->fails = false;
  // One at a time: a save waits for the one before, and does not come into the place ahead of it.
  io->hold = true;
  auto slow = save("slow", true);
  std::thread release([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    io->hold = false;
  });
  save("quick", false);
  RANK_CHECK(slow->ended());
  slow->wait();
  release.join();
  group.barrier();
  RANK_CHECK(folder.names() == std::vector<std::string>({"beside", "plain", "quick", "slow"}));
  group.barrier();
  if (rank == 0) fs::remove_all(folder.path / "quick"), fs::remove_all(folder.path / "slow");
  group.barrier();
  auto dropped = save("dropped", true);
  while (!dropped->ended()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  group.barrier();
  dropped.reset();  // nobody waits
  group.barrier();
  RANK_CHECK(folder.names() == std::vector<std::string>({"beside", "plain"}));
  auto alone = failure_of<fabric::MisuseError>([&] {
    fabric::save_state(context, folder.path / "alone", {{"model", spread}}, {.alone = true});
  });
  RANK_CHECK(has(alone, "'model.weight'"));
  group.barrier();
}

// The usual loop: what the last save returned is assigned over.
RANKS_TEST("a save in parts is finished by the next one, whatever becomes of its handle", "[checkpoint][ranks]", 2) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2, .checkpoint_io = "sharded"});
  fabric.launch();
  auto model = fabric.setup_module(torch::nn::Linear(3, 2));
  std::shared_ptr<fabric::SaveInProgress> saving;
  for (const char* name : {"one", "two", "two", "three"})
    saving = fabric.save(folder.path / name, {{"model", model}}, {.async = true});
  fabric.save(folder.path / "four", {{"model", model}});
  saving->wait();
  group.barrier();
  RANK_CHECK(folder.names() == std::vector<std::string>({"four", "one", "three", "two"}));
  for (const auto& name : folder.names())
    RANK_CHECK(torch::equal(fabric.load(folder.path / name).at("model").at("weight").as<at::Tensor>(), model->weight));
  group.barrier();
}

std::vector<at::Tensor> tensors_of(Value value) {
  std::vector<at::Tensor> out;
  fabric::for_each_leaf_tensor(value, [&](at::Tensor& tensor, const std::string&) { out.push_back(tensor); });
  return out;
}

// Ten saves with a step right behind each: what is saved is what was there before the step.
RANKS_TEST("parameters are copied beside the next passes, and a step waits for that", "[checkpoint][ranks]", 2) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  for (const char* format : {"sharded", "safetensors"}) {
    fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2, .checkpoint_io = format});
    fabric.launch();
    auto [model, optimizer] =
        fabric.setup(torch::nn::Linear(300, 200), [](auto parameters) { return torch::optim::Adam(parameters, 0.1); });
    for (int i = 0; i < 10; ++i) {
      fabric.backward(model(torch::ones({1, 300})).sum());
      optimizer.step();
      optimizer.zero_grad();
      auto before = model->weight.detach().clone();
      auto moment = fabric::optimizer_state_dict(*optimizer);
      fabric::for_each_leaf_tensor(moment, [](at::Tensor& tensor, const std::string&) { tensor = tensor.clone(); });
      auto saving = fabric.save(folder.path / "c", {{"model", model}, {"optimizer", optimizer}},
                                fabric::SaveOptions{.async = true, .copy_beside = true});
      fabric.backward(model(torch::ones({1, 300})).sum());
      optimizer.step();
      saving->wait();
      auto loaded = fabric.load(folder.path / "c");
      RANK_CHECK(torch::equal(loaded.at("model").at("weight").as<at::Tensor>(), before));
      RANK_CHECK(tensors_of(loaded.at("optimizer")).size() == 4);
      RANK_CHECK(tensors_of(loaded.at("optimizer")).front().equal(tensors_of(moment).front()));
      group.barrier();
    }
    group.barrier();
    if (rank == 0) fs::remove_all(folder.path / "c");
    group.barrier();
  }
}

BOTH_BACKENDS_TEST("what is each rank's own comes back to the rank of its number", "[checkpoint][ranks]", 3) {
  auto group = ranks::group_from_env();
  Folder folder(group);
  auto io = fabric::make_checkpoint_io();
  struct Counter : fabric::Stateful {
    std::int64_t count = 0;
    Value state_dict() const override { return count; }
    void load_state_dict(const Value& state) override { count = state.as_int(); }
    bool per_rank() const override { return true; }
  };
  auto access = StateAccess::plain();
  access.rank = rank;
  auto pair = group.subgroup({0, 1}, "pair");
  auto shared = folder.path / "shared", of_two = folder.path / "two", of_one = folder.path / "one";
  Counter counter;
  counter.count = 10 + rank;
  auto state = [&] {
    return State{{"value", fabric::PerRank(Value::Map{{"seen", rank}})}, {"counter", counter}, {"common", rank}};
  };
  fabric::save_state({group, io, access}, shared, state());
  if (pair) fabric::save_state({pair, io, access}, of_two, state());
  if (rank == 0) fabric::save_state({ProcessGroup::single(), io, access}, of_one, state());
  group.barrier();
  auto load = [&](const fs::path& path) {
    counter.count = -1;
    auto loaded = State{{"value", fabric::PerRank("kept")}, {"counter", counter}, {"common", -1}};
    fabric::load_state({group, io, access}, path, &loaded);
    RANK_CHECK(loaded.at("common").value()->as_int() == 0);
    return *loaded.at("value").value();
  };
  RANK_CHECK(load(shared).at("seen").as_int() == rank && counter.count == 10 + rank);
  auto two = load(of_two);  // rank 2 was not there
  RANK_CHECK(rank == 2 ? two.as_string() == "kept" && counter.count == -1
                       : two.at("seen").as_int() == rank && counter.count == 10 + rank);
  auto one = load(of_one);
  RANK_CHECK(rank == 0 ? one.at("seen").as_int() == 0 && counter.count == 10 : counter.count == -1);
  // One rank alone takes up what rank 0 saved.
  counter.count = -1;
  State alone{{"counter", counter}};
  access.rank = 0;
  fabric::load_state({ProcessGroup::single(), io, access}, shared, &alone);
  RANK_CHECK(counter.count == 10);
  RANK_CHECK(io->load(of_one).at("counter").as_int() == 10);
  group.barrier();
}
