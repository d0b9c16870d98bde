// Ranks that are killed, run out of memory or go another way: an error on all others, soon, and what was saved stays.
#include <fabric/plugins/collectives/backend.h>

#include <csignal>
#include <fstream>
#include <new>
#include <random>
#include <thread>

#include "strategies/fsdp/fsdp_test_support.h"
#include "tests/support/killed_life.h"

using namespace fsdp_test;
using fabric::Tree;
using Clock = std::chrono::steady_clock;

namespace {

namespace fs = std::filesystem;

constexpr int kWidth = 96;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Fabric::Config with_timeout(int ranks, Tree::Map params = {}, const std::string& backend = "gloo") {
  params["process_group"] = Tree::Map{{"backend", backend}, {"timeout_seconds", 40}};
  return settings(ranks, params);
}

// What rank 1 does not live to see. The others' error names the operation, and the rank that did not come.
enum class Moment { gather, scatter, end };

void lose_a_rank(int rank, Moment moment, const std::string& prefetch) {
  at::set_num_threads(1);
  Fabric fabric(with_timeout(3, Tree::Map{{"backward_prefetch", prefetch}}));
  fabric.launch();
  auto raw = make_text(kWidth);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  Training().run(fabric, model, optimizer, 0, 1);
  auto die = [&](Moment now) {
    if (rank == 1 && now == moment) raise(SIGKILL);
  };
  const auto begin = Clock::now();
  auto text = error_of([&] {
    auto ids = batch(1, 0, rank, 3);
    auto logits = model.call(
        [&](TextImpl& net, const at::Tensor& x) {
          auto hidden = net.wte(x) * net.single;
          hidden = net.blocks[0]->as<Block>()->forward(hidden);
          die(Moment::gather);
          auto block = net.blocks[1]->as<Block>();
          auto normed = block->norm(hidden);
          // Some gradients of the unit are there by then, not all.
          normed.register_hook([&](const at::Tensor&) { die(Moment::scatter); });
          return net.lm_head(hidden + block->down(torch::tanh(block->up(normed))));
        },
        ids);
    fabric.backward(loss_of(logits, ids));
    die(Moment::end);
    optimizer.step();
    fabric.barrier();
    model(ids);
  });
  RANK_CHECK(has(text, "rank 1"));
  if (moment == Moment::gather) RANK_CHECK(has(text, "gather of parameters"));
  // What the rank sent last may be lost with it.
  if (moment == Moment::scatter) RANK_CHECK(has(text, "reduction of gradients") || has(text, "gather of parameters"));
  RANK_CHECK(seconds_since(begin) < 20);
  // It stays an error.
  const auto again = Clock::now();
  RANK_CHECK(!error_of([&] { model(batch(1, 0, rank, 3)); }).empty());
  RANK_CHECK(seconds_since(again) < 20);
}

void require_survivors(const std::string& body) {
  auto outcomes = ranks::run(body, {.world_size = 3, .timeout_seconds = 60});
  CHECK(outcomes[1].exit_code == 128 + SIGKILL);
  for (int rank : {0, 2}) {
    INFO(body << ", rank " << rank << ": " << outcomes[static_cast<std::size_t>(rank)].output);
    CHECK(outcomes[static_cast<std::size_t>(rank)].exit_code == 0);
  }
}

}  // namespace

RANKS_BODY("fsdp: killed in a gather") { lose_a_rank(rank, Moment::gather, "BACKWARD_PRE"); }
RANKS_BODY("fsdp: killed in a scatter") { lose_a_rank(rank, Moment::scatter, "none"); }
RANKS_BODY("fsdp: killed in a scatter, units gathered ahead") { lose_a_rank(rank, Moment::scatter, "BACKWARD_PRE"); }
RANKS_BODY("fsdp: killed between passes") { lose_a_rank(rank, Moment::end, "BACKWARD_POST"); }

TEST_CASE("a rank that is killed in a pass of fsdp is an error on the others", "[fsdp][failure]") {
  for (const char* body : {"fsdp: killed in a gather", "fsdp: killed in a scatter",
                           "fsdp: killed in a scatter, units gathered ahead", "fsdp: killed between passes"})
    require_survivors(body);
}

namespace {

struct Place {
  explicit Place(const std::string& name) : path(fs::temp_directory_path() / (name + std::to_string(getpid()))) {
    fs::create_directories(path);
  }
  ~Place() { fs::remove_all(path); }
  fs::path path;
};

// Saves, or loads, again and again, until another rank is gone.
void keep_at_it(const fs::path& folder, const std::string& io, bool saves) {
  at::set_num_threads(1);
  auto config = with_timeout(2);
  config.checkpoint_io = io;
  Fabric fabric(config);
  fabric.launch();
  auto raw = make_text(kWidth);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  Training().run(fabric, model, optimizer, 0, 1);
  fabric::State state{{"model", model}, {"optimizer", optimizer}, {"mark", 0}};
  const auto text = error_of([&] {
    for (int i = 1;; ++i) {
      if (saves || i == 1) {
        state["mark"] = Value(i);
        auto whole = fabric::summon(model, {.write_back = true});
        torch::NoGradGuard no_grad;
        raw->single.fill_(static_cast<double>(i));
        whole.close();
        fabric.save(folder / "last", state);
      }
      if (!saves) fabric.load(folder / "last", state);
      if (i == 1 && fabric.is_global_zero()) std::ofstream(folder / "begun") << 1;
    }
  });
  if (!has(text, "rank 1") && !has(text, "store")) throw std::runtime_error("another error: " + text);
}

// The last whole checkpoint, all of one save.
void require_whole(const fs::path& folder, const std::string& io) {
  Fabric fabric({.accelerator = "cpu", .strategy = "single_device", .checkpoint_io = io});
  auto raw = make_text(kWidth);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  fabric::State state{{"model", model}, {"optimizer", optimizer}, {"mark", 0}};
  fabric.load(folder / "last", state);
  const auto mark = state.at("mark").value()->as_int();
  RANK_CHECK(mark >= 1 && raw->single.eq(static_cast<double>(mark)).all().item<bool>());
}

void kill_while(bool saves) {
  std::mt19937 random(saves ? 3 : 4);
  std::uniform_int_distribution<int> moment(0, 60'000);
  for (const char* io : {"safetensors", "sharded"})
    for (int i = 0; i < 2; ++i) {
      Place place("fabric_fsdp_kill_");
      Life life(2, [&] { keep_at_it(place.path, io, saves); });
      for (int wait = 0; wait < 3000 && !fs::exists(place.path / "begun"); ++wait)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      RANK_CHECK(life.kill_one_after(std::chrono::microseconds(moment(random)), 1));
      require_whole(place.path, io);
    }
}

}  // namespace

RANKS_BODY("fsdp: killed in a save") { kill_while(true); }
RANKS_BODY("fsdp: killed in a load") { kill_while(false); }
TEST_CASE("a rank that is killed in a save or a load of fsdp is an error on the others, and nothing is lost",
          "[fsdp][failure][checkpoint]") {
  for (const char* body : {"fsdp: killed in a save", "fsdp: killed in a load"})
    ranks::run_and_require(body, {.world_size = 1, .timeout_seconds = 150});
}

namespace {

// Gloo whose memory ends on rank 1.
bool out_of_memory = false;
struct Stingy : fabric::CollectiveBackend {
  using CollectiveBackend::CollectiveBackend;
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) override {
    if (out_of_memory) throw std::bad_alloc();
    return CollectiveBackend::empty(sizes, options);
  }
};

}  // namespace

RANKS_TEST("a rank without memory for a gather fails all at once", "[fsdp][failure]", 2) {
  at::set_num_threads(1);
  fabric::register_backend("stingy", {.make = [](const fabric::BackendRequest& request) {
                             return std::make_shared<Stingy>(fabric::make_backend("gloo", request)->c10d());
                           }});
  Fabric fabric(with_timeout(2, {}, "stingy"));
  fabric.launch();
  auto raw = make_text(kWidth);
  auto model = fabric.setup(raw);
  out_of_memory = rank == 1;
  const auto begin = Clock::now();
  auto text = error_of([&] { model(batch(0, 0, rank, 2)); });
  RANK_CHECK(has(text, "gather of parameters failed"));
  RANK_CHECK(has(text, "bad_alloc") == (rank == 1));
  RANK_CHECK(seconds_since(begin) < 20);
}

RANKS_TEST("units in another order on one rank are an error on all, gathered ahead or not", "[fsdp][failure]", 2) {
  at::set_num_threads(1);
  for (bool ahead : {false, true}) {
    Fabric fabric(with_timeout(2, Tree::Map{{"forward_prefetch", ahead}}));
    fabric.launch();
    auto model = fabric.setup(make_text());
    auto ids = batch(0, 0, rank, 2);
    for (int i = 0; i < 2; ++i) fabric.backward(loss_of(model(ids), ids));
    auto text = error_of([&] {
      model.call(
          [&](TextImpl& net, const at::Tensor& x) {
            auto hidden = net.wte(x);
            const bool turned = rank == 1;
            hidden = net.blocks[turned ? 1 : 0]->as<Block>()->forward(hidden);
            hidden = net.blocks[turned ? 0 : 1]->as<Block>()->forward(hidden);
            return net.lm_head(net.blocks[2]->as<Block>()->forward(hidden));
          },
          ids);
    });
    RANK_CHECK(has(text, "gather of parameters") && has(text, "blocks.0") && has(text, "blocks.1"));
    // None has run anything, and all go on.
    fabric.backward(loss_of(model(ids), ids));
  }
}

RANKS_TEST("policies that wrap nothing or everything, and copies without a mesh", "[fsdp][failure]", 2) {
  at::set_num_threads(1);
  auto with_policy = [](std::function<bool(const std::string&, const torch::nn::Module&)> policy) {
    fabric::FSDPStrategy::Config config;
    config.wrap_if = std::move(policy);
    Fabric::Parts parts;
    parts.strategy = std::make_shared<fabric::FSDPStrategy>(config);
    Fabric fabric({.accelerator = "cpu", .devices = 2}, parts);
    fabric.launch();
    auto raw = make_text();
    auto [model, optimizer] = fabric.setup(raw, adamw);
    Training().run(fabric, model, optimizer, 0, 2);
    RANK_CHECK(difference(model, alone(2).parameters) < 1e-12);
  };
  RANK_CHECK(has(error_of([&] { with_policy([](auto&, auto&) { return false; }); }), "auto_wrap_policy = \"none\""));
  RANK_CHECK(has(error_of([&] { with_policy(fabric::Unit<torch::nn::LSTMImpl>()); }), "BlockImpl, not Block"));
  with_policy([](auto&, auto&) { return true; });
  auto hybrid = error_of([&] {
    Fabric fabric(settings(2, Tree::Map{{"sharding_strategy", "HYBRID_SHARD"}}));
    fabric.launch();
    fabric.setup(make_text());
  });
  RANK_CHECK(has(hybrid, "device_mesh"));
}
