#include <algorithm>
#include <numeric>

#include <ATen/ops/rand.h>

#include <fabric/dataloader.h>

#include "fabric/data/loader_test_support.h"
#include "tests/support/catch.h"

namespace {

using fabric::make_dataloader;
using fabric::SamplerShard;
using loader_test::Counting;
using loader_test::Numbers;
using loader_test::read;

/// A sample and a random number, as augmentation would draw it.
struct Augmented {
  std::pair<std::int64_t, double> get(std::size_t index) {
    return {static_cast<std::int64_t>(index),
            at::rand({1}, fabric::worker_info().generator(), at::kDouble).item<double>()};
  }
  std::size_t size() const { return 23; }
};
struct NineLines {
  std::int64_t line = 0;
  std::optional<std::int64_t> next() { return line < 9 ? std::optional(line++) : std::nullopt; }
  void reset() { line = 0; }
};
/// An order of its own that goes on over the epochs, as a generator would.
class Drifting : public fabric::IndexSampler {
 public:
  void reset() override { start_ = state_++, given_ = 0; }
  std::optional<std::size_t> next() override {
    return given_ < 6 ? std::optional((static_cast<std::size_t>(start_) + given_++) % 6) : std::nullopt;
  }
  std::optional<std::size_t> size() const override { return 6; }
  fabric::Value state_dict() const override { return state_; }
  void load_state_dict(const fabric::Value& state) override { state_ = state.as_int(); }

 private:
  std::int64_t state_ = 0, start_ = 0;
  std::size_t given_ = 0;
};

}  // namespace

TEST_CASE("a loader goes on in the middle of an epoch with exactly the batches that were left", "[data][resume]") {
  for (int workers : {0, 1, 3}) {
    for (std::size_t used : {1, 2, 4, 5}) {
      INFO("workers " << workers << ", batches used " << used);
      fabric::DataLoaderOptions options{.batch_size = 5, .shuffle = true, .workers = workers, .seed = 6};
      auto whole = make_dataloader(Counting{23}, options);
      auto zero = read(whole), one = read(whole), two = read(whole);

      auto first = make_dataloader(Counting{23}, options);
      CHECK(read(first) == zero);
      auto before = read(first, used);
      auto state = first.state_dict();
      options.seed = 99;
      auto second = make_dataloader(Counting{23}, options);
      second.load_state_dict(state);
      CHECK(second.epoch() == 1);
      auto after = read(second);
      before.insert(before.end(), after.begin(), after.end());
      CHECK(before == one);
      CHECK(read(second) == two);
    }
  }
}

TEST_CASE("the state inside the loop counts the batch that is in use", "[data][resume]") {
  auto loader = make_dataloader(Counting{6}, {.batch_size = 2, .workers = 2});
  fabric::Value state;
  for (auto& batch : loader) {
    state = loader.state_dict();
    if (batch[0].item<int>() == 2) break;
  }
  auto other = make_dataloader(Counting{6}, {.batch_size = 2});
  other.load_state_dict(state);
  CHECK(read(other) == Numbers{4, 5});
}

TEST_CASE("after the last batch nothing is left of the epoch, after the loop the next one comes", "[data][resume]") {
  auto loader = make_dataloader(Counting{4}, {.batch_size = 2, .shuffle = true});
  fabric::Value at_last;
  for (auto& batch : loader) at_last = (static_cast<void>(batch), loader.state_dict());
  auto after = loader.state_dict();
  auto next = read(loader);
  auto other = make_dataloader(Counting{4}, {.batch_size = 2, .shuffle = true});
  other.load_state_dict(at_last);
  CHECK(read(other).empty());
  CHECK(read(other) == next);
  other.load_state_dict(after);
  CHECK(other.epoch() == 1);
  CHECK(read(other) == next);
}

TEST_CASE("setting the epoch keeps a restored place in it and leaves it for another", "[data][resume]") {
  auto loader = make_dataloader(Counting{6}, {.batch_size = 2});
  read(loader, 1);
  auto state = loader.state_dict();
  loader.load_state_dict(state);
  loader.set_epoch(0);
  CHECK(read(loader) == Numbers{2, 3, 4, 5});
  loader.load_state_dict(state);
  loader.set_epoch(5);
  CHECK(read(loader).size() == 6);
  CHECK(loader.epoch() == 6);
}

TEST_CASE("random numbers are the same for any number of workers and after a resume", "[data][resume]") {
  auto draw = [](int workers, std::optional<fabric::Value> state, std::size_t batches, fabric::Value* out) {
    auto loader = make_dataloader(Augmented(), {.batch_size = 4, .shuffle = true, .workers = workers, .seed = 1});
    if (state) loader.load_state_dict(*state);
    std::vector<double> numbers;
    for (auto& [index, number] : loader) {
      for (std::int64_t i = 0; i < number.numel(); ++i) numbers.push_back(number[i].template item<double>());
      if (--batches == 0) break;
    }
    if (out) *out = loader.state_dict();
    return numbers;
  };
  auto whole = draw(0, std::nullopt, 100, nullptr);
  REQUIRE(whole.size() == 23);
  CHECK(draw(3, std::nullopt, 100, nullptr) == whole);
  fabric::Value state;
  auto part = draw(2, std::nullopt, 2, &state);
  auto rest = draw(3, state, 100, nullptr);
  part.insert(part.end(), rest.begin(), rest.end());
  CHECK(part == whole);
  std::sort(whole.begin(), whole.end());
  CHECK(std::unique(whole.begin(), whole.end()) == whole.end());
}

TEST_CASE("streams skip what was used", "[data][resume]") {
  for (int workers : {0, 2}) {
    auto loader = make_dataloader(NineLines(), {.batch_size = 2, .workers = workers});
    CHECK(read(loader, 2) == Numbers{0, 1, 2, 3});
    auto other = make_dataloader(NineLines(), {.batch_size = 2, .workers = workers});
    other.load_state_dict(loader.state_dict());
    CHECK(read(other) == Numbers{4, 5, 6, 7, 8});
    CHECK(read(other).size() == 9);
  }
}

TEST_CASE("a sampler's own state is saved as it was when the epoch began", "[data][resume]") {
  auto loader = make_dataloader(Counting{6}, {.batch_size = 2, .sampler = Drifting()});
  CHECK(read(loader) == Numbers{0, 1, 2, 3, 4, 5});
  CHECK(read(loader, 1) == Numbers{1, 2});
  auto in_epoch = loader.state_dict();
  auto other = make_dataloader(Counting{6}, {.batch_size = 2, .sampler = Drifting()});
  other.load_state_dict(in_epoch);
  CHECK(read(other) == Numbers{3, 4, 5, 0});
  auto between = other.state_dict();
  CHECK(read(other) == Numbers{2, 3, 4, 5, 0, 1});
  other.load_state_dict(between);
  CHECK(read(other) == Numbers{2, 3, 4, 5, 0, 1});
}

TEST_CASE("other ranks or batch sizes share what is left, each sample once", "[data][resume]") {
  auto on = [](int rank, int world, std::size_t batch_size) {
    return make_dataloader(Counting{24}, {.batch_size = batch_size, .shuffle = true, .seed = 2},
                           {.shard = SamplerShard{world, rank}, .rank = rank});
  };
  auto first = on(0, 2, 3), second = on(1, 2, 3);
  auto used = read(first, 2);
  auto used_too = read(second, 2);
  used.insert(used.end(), used_too.begin(), used_too.end());
  fabric::Value again;
  for (int rank = 0; rank < 3; ++rank) {
    auto loader = on(rank, 3, 2);
    loader.load_state_dict(first.state_dict());
    auto part = read(loader, 1);
    CHECK(part.size() == 2);
    used.insert(used.end(), part.begin(), part.end());
    again = loader.state_dict();
  }
  CHECK(used.size() == 18);
  auto alone = on(0, 1, 6);
  alone.load_state_dict(again);
  auto rest = read(alone);
  CHECK(rest.size() == 6);
  used.insert(used.end(), rest.begin(), rest.end());
  std::sort(used.begin(), used.end());
  Numbers all(24);
  std::iota(all.begin(), all.end(), 0);
  CHECK(used == all);
  CHECK(read(alone).size() == 24);
  CHECK(alone.size() == 4);
}

TEST_CASE("a state that does not fit is refused and changes nothing", "[data][resume]") {
  auto saved = make_dataloader(Counting{8}, {.batch_size = 2, .shuffle = true});
  read(saved, 1);
  auto state = saved.state_dict();
  auto other_size = make_dataloader(Counting{9}, {.batch_size = 2, .shuffle = true});
  CHECK_THROWS_AS(other_size.load_state_dict(state), fabric::MisuseError);
  CHECK(read(other_size).size() == 9);
  CHECK_THROWS_AS(make_dataloader(Counting{8}, {.batch_size = 2}).load_state_dict(state), fabric::MisuseError);
  CHECK_THROWS_AS(saved.load_state_dict(fabric::Value(1)), fabric::MisuseError);

  auto custom = make_dataloader(Counting{6}, {.batch_size = 2, .sampler = Drifting()});
  read(custom, 1);
  CHECK_THROWS_AS(
      make_dataloader(Counting{6}, {.batch_size = 3, .sampler = Drifting()}).load_state_dict(custom.state_dict()),
      fabric::MisuseError);
  // Between two epochs nothing has to fit.
  read(saved);
  CHECK(saved.epoch() == 2);
  other_size.load_state_dict(saved.state_dict());
  CHECK(other_size.epoch() == 2);
}

TEST_CASE("restoring ends an iteration that is going on", "[data][resume]") {
  auto loader = make_dataloader(Counting{4});
  auto it = loader.begin();
  CHECK((*it)[0].item<int>() == 0);
  loader.load_state_dict(loader.state_dict());
  CHECK_THROWS_AS(++it, fabric::MisuseError);
  CHECK(read(loader) == Numbers{1, 2, 3});
}

TEST_CASE("a loader is an entry of a checkpoint", "[data][resume]") {
  auto loader = make_dataloader(Counting{4});
  fabric::State state{{"loader", loader}};
  REQUIRE(state.at("loader").stateful() != nullptr);
  CHECK(state.at("loader").stateful()->state_dict().at("epoch").as_int() == 0);
}
