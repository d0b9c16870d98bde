#include <algorithm>
#include <deque>
#include <functional>
#include <numeric>

#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <torch/data/samplers.h>

#include <fabric/data/dataloader.h>

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
/// The same without a state: what it gives depends on how often it was started.
class Forgetful : public Drifting {
 public:
  fabric::Value state_dict() const override { return {}; }
  void load_state_dict(const fabric::Value&) override {}
};
/// An order that the epoch's number alone decides.
class Turning : public Forgetful {
 public:
  void set_epoch(std::int64_t epoch) override { Drifting::load_state_dict(epoch); }
};
/// A sampler as people write them for LibTorch.
struct TorchRandom : torch::data::samplers::Sampler<> {
  std::size_t start = 0, given = 0;
  void reset(std::optional<std::size_t>) override { start += 1, given = 0; }
  std::optional<std::vector<std::size_t>> next(std::size_t count) override {
    std::vector<std::size_t> some;
    while (some.size() < count && given < 6) some.push_back((start + given++) % 6);
    return some.empty() ? std::nullopt : std::optional(some);
  }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}
};
/// Pairs of neighbours out of a sampler, whose state it does not mention.
class Couples : public fabric::BatchSampler {
 public:
  explicit Couples(std::shared_ptr<fabric::IndexSampler> sampler) : sampler_(std::move(sampler)) {}
  void reset() override { sampler_->reset(); }
  bool next(std::vector<std::size_t>& batch) override {
    batch.clear();
    for (int i = 0; i < 2; ++i)
      if (auto index = sampler_->next()) batch.push_back(*index);
    return !batch.empty();
  }
  std::shared_ptr<fabric::IndexSampler> sampler() const override { return sampler_; }
  bool set_sampler(std::shared_ptr<fabric::IndexSampler> sampler) override {
    sampler_ = std::move(sampler);
    return true;
  }

 private:
  std::shared_ptr<fabric::IndexSampler> sampler_;
};
/// Twelve numbers through a buffer out of which one is drawn at random.
struct ShuffleBuffer {
  std::int64_t line = 0;
  std::deque<std::int64_t> buffer;
  std::optional<std::int64_t> next() {
    while (line < 12 && buffer.size() < 5) buffer.push_back(line++);
    if (buffer.empty()) return std::nullopt;
    auto size = static_cast<std::int64_t>(buffer.size());
    auto place = buffer.begin() + at::randint(size, {1}, fabric::worker_info().generator(), at::kLong).item<int>();
    auto number = *place;
    buffer.erase(place);
    return number;
  }
  void reset() { line = 0, buffer.clear(); }
};
/// Nine lines, or fewer; one of them cannot be read as long as `broken` says so.
struct FragileLines : NineLines {
  std::int64_t count = 9;
  std::shared_ptr<bool> broken = std::make_shared<bool>(false);
  std::optional<std::int64_t> next() {
    if (line == 1 && *broken) throw std::runtime_error("line 1 is broken");
    return line < count ? std::optional(line++) : std::nullopt;
  }
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

TEST_CASE("a sampler without a state that gives the same order again goes on", "[data][resume]") {
  auto goes_on = [](const fabric::DataLoaderOptions& options) {
    auto loader = make_dataloader(Counting{6}, options);
    CHECK(read(loader).size() == 6);
    auto all = read(loader, 2);
    CHECK(all.size() == 4);
    auto other = make_dataloader(Counting{6}, options);
    other.load_state_dict(loader.state_dict());
    auto rest = read(other);
    CHECK(rest.size() == 2);
    all.insert(all.end(), rest.begin(), rest.end());
    std::sort(all.begin(), all.end());
    CHECK(all == Numbers{0, 1, 2, 3, 4, 5});
    CHECK(other.epoch() == 2);
    CHECK(read(other).size() == 6);
  };
  for (int workers : {0, 2})
    for (bool in_order : {true, false}) {
      INFO("workers " << workers << ", in order " << in_order);
      for (const fabric::SamplerOption& sampler :
           {fabric::SamplerOption(std::vector<std::size_t>{5, 1, 0, 2, 4, 3}),
            fabric::SamplerOption(torch::data::samplers::DistributedRandomSampler(6)),
            fabric::SamplerOption(fabric::DistributedSampler(6, {})), fabric::SamplerOption(Turning())})
        goes_on({.batch_size = 2, .sampler = sampler, .workers = workers, .in_order = in_order});
      auto make = [](std::shared_ptr<fabric::IndexSampler> sampler, std::size_t, bool) {
        return std::make_shared<Couples>(std::move(sampler));
      };
      goes_on({.shuffle = true, .batch_sampler = make, .workers = workers, .in_order = in_order});
    }
}

TEST_CASE("another order than before is an error, not samples that come twice", "[data][resume]") {
  using Make = std::function<fabric::DataLoaderOptions()>;
  auto pairs = [](std::shared_ptr<fabric::IndexSampler> sampler) {
    return fabric::DataLoaderOptions{.batch_sampler = Couples(std::move(sampler))};
  };
  struct Case {
    const char* name;
    bool goes_on;
    Make options;
  };
  for (const auto& [name, goes_on, options] : {
           Case{"state", true, [] { return fabric::DataLoaderOptions{.batch_size = 2, .sampler = Drifting()}; }},
           Case{"epoch", true, [] { return fabric::DataLoaderOptions{.batch_size = 2, .sampler = Turning()}; }},
           Case{"no state", false, [] { return fabric::DataLoaderOptions{.batch_size = 2, .sampler = Forgetful()}; }},
           Case{"LibTorch", false, [] { return fabric::DataLoaderOptions{.batch_size = 2, .sampler = TorchRandom()}; }},
           Case{"state below", true, [&] { return pairs(std::make_shared<Drifting>()); }},
           Case{"no state below", false, [&] { return pairs(std::make_shared<Forgetful>()); }},
       }) {
    for (int workers : {0, 2}) {
      INFO(name << ", workers " << workers);
      auto with_workers = options();
      with_workers.workers = workers;
      auto loader = make_dataloader(Counting{6}, with_workers);
      read(loader);
      read(loader);
      auto all = read(loader, 1);
      auto state = loader.state_dict();
      auto fresh = options();
      fresh.workers = workers;
      auto other = make_dataloader(Counting{6}, fresh);
      other.load_state_dict(state);
      if (goes_on) {
        auto rest = read(other);
        all.insert(all.end(), rest.begin(), rest.end());
        std::sort(all.begin(), all.end());
        CHECK(all == Numbers{0, 1, 2, 3, 4, 5});
        continue;
      }
      for (int attempt = 0; attempt < 2; ++attempt)
        CHECK_THROWS_WITH(read(other),
                          Catch::Matchers::Contains("epoch 2") && Catch::Matchers::Contains("load_state_dict"));
      CHECK(other.state_dict().at("order").as_int() == state.at("order").as_int());
      other.set_epoch(3);
      CHECK(read(other).size() == 6);
    }
  }
}

TEST_CASE("every rank compares the order that the ranks share", "[data][resume]") {
  auto on = [](int rank, auto sampler) {
    return make_dataloader(Counting{6}, {.sampler = std::move(sampler)},
                           {.shard = SamplerShard{2, rank}, .rank = rank});
  };
  auto state_of_first = [&](auto sampler) {
    auto loader = on(0, sampler);
    read(loader);
    read(loader, 1);
    return loader.state_dict();
  };
  for (int rank : {0, 1}) {
    INFO("rank " << rank);
    auto turning = on(rank, Turning());
    turning.load_state_dict(state_of_first(Turning()));
    CHECK(read(turning).size() == 2);
    auto forgetful = on(rank, Forgetful());
    forgetful.load_state_dict(state_of_first(Forgetful()));
    CHECK_THROWS_AS(read(forgetful), fabric::MisuseError);
  }
  // Where each rank has an order of its own, only the one that saved can compare.
  auto own = [](int rank) {
    return make_dataloader(
        Counting{6},
        {.sampler = torch::data::samplers::DistributedSequentialSampler(6, 2, static_cast<std::size_t>(rank))},
        {.shard = SamplerShard{2, rank}, .rank = rank});
  };
  auto first = own(0), second = own(1);
  CHECK(read(first, 1) == Numbers{0});
  second.load_state_dict(first.state_dict());
  CHECK(read(second) == Numbers{4, 5});
}

TEST_CASE("a state from before marks were saved is taken as it is", "[data][resume]") {
  auto loader = make_dataloader(Counting{6}, {.batch_size = 2, .sampler = Turning()});
  read(loader, 1);
  auto state = loader.state_dict();
  state.as_map().erase("order");
  state.as_map().erase("order_rank");
  auto other = make_dataloader(Counting{6}, {.batch_size = 2, .sampler = Turning()});
  other.load_state_dict(state);
  CHECK(read(other).size() == 4);
}

TEST_CASE("a state that was loaded before the loader was set up counts", "[data][resume]") {
  auto saved = make_dataloader(Counting{12}, {.shuffle = true, .seed = 4});
  auto whole = read(saved);
  saved.set_epoch(0);
  CHECK(read(saved, 4) == Numbers(whole.begin(), whole.begin() + 4));
  Numbers rest;
  for (int rank : {0, 1}) {
    auto plain = make_dataloader(Counting{12}, {.shuffle = true, .seed = 99});
    plain.load_state_dict(saved.state_dict());
    auto part = read(make_dataloader(plain, {}, {.shard = SamplerShard{2, rank}, .rank = rank}));
    CHECK(part.size() == 4);
    rest.insert(rest.end(), part.begin(), part.end());
  }
  std::sort(rest.begin(), rest.end());
  Numbers left(whole.begin() + 4, whole.end());
  std::sort(left.begin(), left.end());
  CHECK(rest == left);

  auto custom = make_dataloader(Counting{6}, {.sampler = Turning()});
  read(custom, 1);
  custom.load_state_dict(custom.state_dict());
  CHECK_THROWS_AS(make_dataloader(custom, {}, {.shard = SamplerShard{2, 0}}), fabric::MisuseError);
}

TEST_CASE("a stream that draws random numbers gives the same ones while it is read past", "[data][resume]") {
  for (int workers : {0, 2}) {
    INFO("workers " << workers);
    auto whole = read(make_dataloader(ShuffleBuffer(), {.batch_size = 2, .workers = workers, .seed = 3}));
    auto loader = make_dataloader(ShuffleBuffer(), {.batch_size = 2, .workers = workers, .seed = 3});
    auto all = read(loader, 3);
    auto other = make_dataloader(ShuffleBuffer(), {.batch_size = 2, .workers = workers, .seed = 3});
    other.load_state_dict(loader.state_dict());
    auto rest = read(other);
    all.insert(all.end(), rest.begin(), rest.end());
    CHECK(all == whole);
    CHECK(all.size() == 12);
  }
}

TEST_CASE("a stream that cannot be read past is an error and stays one", "[data][resume]") {
  for (int workers : {0, 2}) {
    INFO("workers " << workers);
    FragileLines lines;
    auto loader = make_dataloader(lines, {.batch_size = 2, .workers = workers});
    read(loader, 2);
    auto other = make_dataloader(lines, {.batch_size = 2, .workers = workers});
    other.load_state_dict(loader.state_dict());
    *lines.broken = true;
    auto it = other.begin();
    CHECK_THROWS_AS(*it, fabric::DataError);
    CHECK_THROWS_AS(++it, fabric::DataError);
    *lines.broken = false;
    CHECK((*it)[0].item<int>() == 4);
    FragileLines shorter;
    shorter.count = 2;
    auto short_one = make_dataloader(shorter, {.batch_size = 2, .workers = workers});
    short_one.load_state_dict(loader.state_dict());
    CHECK_THROWS_WITH(read(short_one), Catch::Matchers::Contains("ended after 1 batches"));
  }
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
