#include <fabric/data/dataloader.h>

#include <numeric>

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <torch/data/datasets.h>
#include <torch/data/transforms.h>

#include <fabric/config/parse.h>
#include <fabric/facade/wrappers.h>

#include "fabric/data/loader_test_support.h"
#include "tests/support/catch.h"

namespace {

using fabric::DataLoaderOptions;
using fabric::LoaderContext;
using fabric::make_dataloader;
using fabric::SamplerShard;
using loader_test::Counting;
using loader_test::Numbers;
using loader_test::read;

LoaderContext rank_of(int rank, int world) { return {.shard = SamplerShard{world, rank}, .rank = rank}; }

/// Remembers the epochs it was told and when it was started.
class Recorder : public fabric::IndexSampler {
 public:
  explicit Recorder(std::size_t count, bool sized = true) : count_(count), sized_(sized) {}
  void reset() override { next_ = 0, ++starts; }
  std::optional<std::size_t> next() override { return next_ < count_ ? std::optional(next_++) : std::nullopt; }
  std::optional<std::size_t> size() const override { return sized_ ? std::optional(count_) : std::nullopt; }
  void set_epoch(std::int64_t epoch) override { epochs.push_back(epoch); }
  std::vector<std::int64_t> epochs;
  int starts = 0;

 private:
  std::size_t count_;
  bool sized_;
  std::size_t next_ = 0;
};

/// Pairs of neighbours out of a sampler.
class Pairs : public fabric::BatchSampler {
 public:
  explicit Pairs(std::shared_ptr<fabric::IndexSampler> sampler, bool takes_sampler = true)
      : sampler_(std::move(sampler)), takes_sampler_(takes_sampler) {}
  void reset() override { sampler_->reset(); }
  bool next(std::vector<std::size_t>& batch) override {
    batch.clear();
    while (batch.size() < 2) {
      auto index = sampler_->next();
      if (!index) break;
      batch.push_back(*index);
    }
    return !batch.empty();
  }
  std::optional<std::size_t> size() const override { return (*sampler_->size() + 1) / 2; }
  std::shared_ptr<fabric::IndexSampler> sampler() const override { return sampler_; }
  bool set_sampler(std::shared_ptr<fabric::IndexSampler> sampler) override {
    if (takes_sampler_) sampler_ = std::move(sampler);
    return takes_sampler_;
  }

 private:
  std::shared_ptr<fabric::IndexSampler> sampler_;
  bool takes_sampler_;
};

struct TorchDataset : torch::data::datasets::Dataset<TorchDataset> {
  torch::data::Example<> get(std::size_t index) override {
    return {at::full({3}, static_cast<double>(index)), at::tensor(static_cast<std::int64_t>(index))};
  }
  std::optional<std::size_t> size() const override { return 5; }
};
struct FastDataset : TorchDataset {
  std::vector<torch::data::Example<>> get_batch(c10::ArrayRef<std::size_t> indices) override {
    ++*calls;
    return TorchDataset::get_batch(indices);
  }
  std::shared_ptr<int> calls = std::make_shared<int>(0);
};
struct DerivedFast : FastDataset {};
struct WholeBatches {
  std::vector<at::Tensor> get_batch(const std::vector<std::size_t>& indices) {
    return {at::full({1}, static_cast<double>(indices.size())), at::full({2}, 0.0)};
  }
  std::size_t size() const { return 5; }
};
struct Stateful : torch::data::datasets::StatefulDataset<Stateful, std::vector<torch::data::Example<>>> {
  std::size_t next_ = 0;
  int resets = 0;
  std::optional<std::vector<torch::data::Example<>>> get_batch(std::size_t count) override {
    std::vector<torch::data::Example<>> batch;
    for (; batch.size() < count && next_ < 5; ++next_)
      batch.push_back({at::tensor(static_cast<float>(next_)), at::tensor(0)});
    return batch.empty() ? std::nullopt : std::optional(batch);
  }
  std::optional<std::size_t> size() const override { return std::nullopt; }
  void reset() override { next_ = 0, ++resets; }
  void save(torch::serialize::OutputArchive&) const override {}
  void load(torch::serialize::InputArchive&) override {}
};
struct Stream : torch::data::datasets::StreamDataset<Stream, std::size_t> {
  std::size_t get_batch(std::size_t count) override { return count; }
  std::optional<std::size_t> size() const override { return 7; }
};
struct Lines {
  std::int64_t line = 0;
  std::optional<std::int64_t> next() { return line < 5 ? std::optional(line++) : std::nullopt; }
  void reset() { line = 0; }
};
struct Joined : Counting {
  std::string collate(std::vector<std::int64_t> samples) const {
    std::string text;
    for (auto sample : samples) text += std::to_string(sample);
    return text;
  }
};
struct Nested {
  at::Tensor image;
  std::map<std::string, std::vector<at::Tensor>> parts;
  FABRIC_TENSORS(Nested, image, parts)
};
struct NestedBatches {
  Nested get_batch(c10::ArrayRef<std::size_t>) {
    return {at::full({1}, 1.0), {{"a", {at::full({1}, 2.0), at::Tensor()}}}};
  }
  std::size_t size() const { return 2; }
};

}  // namespace

TEST_CASE("without shuffling rank 0 of 2 reads 0, 2, 4, 6", "[data][loader]") {
  auto loader = make_dataloader(Counting{8}, {.batch_size = 2}, rank_of(0, 2));
  CHECK(read(loader) == Numbers{0, 2, 4, 6});
  CHECK(read(make_dataloader(Counting{8}, {.batch_size = 2}, rank_of(1, 2))) == Numbers{1, 3, 5, 7});
  CHECK(loader.size() == 2);
}

TEST_CASE("one process reads the order that the ranks share out", "[data][loader]") {
  auto alone = make_dataloader(Counting{10}, {.shuffle = true, .seed = 3});
  auto one_of_one = make_dataloader(Counting{10}, {.shuffle = true, .seed = 3}, rank_of(0, 1));
  auto first = make_dataloader(Counting{10}, {.shuffle = true, .seed = 3}, rank_of(0, 2));
  auto second = make_dataloader(Counting{10}, {.shuffle = true, .seed = 3}, rank_of(1, 2));
  Numbers previous;
  for (int epoch = 0; epoch < 3; ++epoch) {
    auto whole = read(alone), a = read(first), b = read(second);
    CHECK(read(one_of_one) == whole);
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(a[i] == whole[2 * i]);
      CHECK(b[i] == whole[2 * i + 1]);
    }
    CHECK(whole != previous);
    previous = whole;
  }
}

TEST_CASE("the last batch is kept or dropped, and size() says so", "[data][loader]") {
  for (std::size_t n : {0, 1, 7, 8, 9})
    for (int world : {1, 2, 3})
      for (std::size_t batch_size : {1, 2, 3, 8})
        for (bool drop_last : {false, true}) {
          INFO("n " << n << ", world " << world << ", batch size " << batch_size << ", drop_last " << drop_last);
          auto loader = make_dataloader(Counting{n}, {.batch_size = batch_size, .drop_last = drop_last},
                                        rank_of(world - 1, world));
          std::size_t mine = (n + static_cast<std::size_t>(world) - 1) / static_cast<std::size_t>(world);
          std::size_t batches = 0;
          for (auto& batch : loader) {
            ++batches;
            bool last = batches == (mine + batch_size - 1) / batch_size;
            std::size_t expected = last && mine % batch_size ? mine % batch_size : batch_size;
            CHECK(static_cast<std::size_t>(batch.numel()) == expected);
          }
          CHECK(batches == (drop_last ? mine / batch_size : (mine + batch_size - 1) / batch_size));
          CHECK(batches == loader.size());
        }
}

TEST_CASE("the epoch is set at the first fetch and counts on", "[data][loader]") {
  auto sampler = std::make_shared<Recorder>(4);
  auto loader = make_dataloader(Counting{4}, {.batch_size = 2, .sampler = sampler});
  auto it = loader.begin();
  CHECK(sampler->epochs.empty());
  CHECK(sampler->starts == 0);
  CHECK((*it)[0].item<int>() == 0);
  CHECK(sampler->epochs == std::vector<std::int64_t>{0});
  ++it;
  CHECK(sampler->epochs.size() == 1);
  read(loader);
  read(loader);
  CHECK(sampler->epochs == std::vector<std::int64_t>{0, 1, 2});
  loader.set_epoch(10);
  read(loader);
  read(loader);
  CHECK(sampler->epochs == std::vector<std::int64_t>{0, 1, 2, 10, 11});
}

TEST_CASE("leaving a loop early ends the epoch", "[data][loader]") {
  auto loader = make_dataloader(Counting{9}, {.shuffle = true});
  for (auto& batch : loader)
    if (batch.numel()) break;
  CHECK(loader.epoch() == 0);
  auto second = read(loader);
  auto reference = make_dataloader(Counting{9}, {.shuffle = true});
  reference.set_epoch(1);
  CHECK(second == read(reference));
}

TEST_CASE("set_epoch is passed through the wrapper of a custom sampler", "[data][loader]") {
  auto sampler = std::make_shared<Recorder>(5);
  auto loader = make_dataloader(Counting{5}, {.sampler = sampler}, rank_of(1, 2));
  CHECK(read(loader) == Numbers{1, 3, 0});
  CHECK(read(loader) == Numbers{1, 3, 0});
  CHECK(sampler->epochs == std::vector<std::int64_t>{0, 1});
  CHECK(loader.size() == 3);
}

TEST_CASE("a custom sampler without a size is an error unless it is left alone", "[data][loader]") {
  auto sampler = std::make_shared<Recorder>(5, false);
  CHECK_THROWS_AS(make_dataloader(Counting{5}, {.sampler = sampler}, rank_of(0, 2)), fabric::MisuseError);
  auto alone = make_dataloader(Counting{5}, {.batch_size = 2, .sampler = sampler, .use_distributed_sampler = false},
                               rank_of(0, 2));
  CHECK(read(alone) == Numbers{0, 1, 2, 3, 4});
  CHECK_FALSE(alone.has_size());
  CHECK_THROWS_AS(alone.size(), fabric::MisuseError);
}

TEST_CASE("a sampler that is already one rank's is left alone", "[data][loader]") {
  auto own = std::make_shared<fabric::DistributedSampler>(
      6, fabric::DistributedSampler::Config{.num_replicas = 3, .rank = 2, .shuffle = false});
  auto loader = make_dataloader(Counting{6}, {.sampler = own}, rank_of(0, 2));
  CHECK(read(loader) == Numbers{2, 5});
  CHECK(loader.sampler() == own);
}

TEST_CASE("a list of indices is a sampler, and wrong indices are an error", "[data][loader]") {
  CHECK(read(make_dataloader(Counting{9}, {.sampler = std::vector<std::size_t>{7, 1, 3}}, rank_of(0, 2))) ==
        Numbers{7, 3});
  CHECK_THROWS_AS(read(make_dataloader(Counting{9}, {.sampler = std::vector<std::size_t>{9}})), fabric::MisuseError);
}

TEST_CASE("batch samplers are made again over a rank's share", "[data][loader]") {
  auto whole = [] { return std::make_shared<Recorder>(8); };
  auto by_object = make_dataloader(Counting{8}, {.batch_sampler = Pairs(whole())}, rank_of(1, 2));
  CHECK(by_object.size() == 2);
  CHECK(read(by_object) == Numbers{1, 3, 5, 7});
  auto make = [](std::shared_ptr<fabric::IndexSampler> sampler, std::size_t batch_size, bool) {
    CHECK(batch_size == 2);
    return std::make_shared<Pairs>(std::move(sampler));
  };
  auto by_function = make_dataloader(Counting{8}, {.batch_size = 2, .batch_sampler = make}, rank_of(1, 2));
  CHECK(read(by_function) == Numbers{1, 3, 5, 7});
  CHECK_THROWS_AS(make_dataloader(Counting{8}, {.batch_sampler = Pairs(whole(), false)}, rank_of(0, 2)),
                  fabric::MisuseError);
  auto alone = make_dataloader(Counting{8}, {.batch_sampler = Pairs(whole(), false), .use_distributed_sampler = false},
                               rank_of(0, 2));
  CHECK(read(alone).size() == 8);
}

TEST_CASE("streams are left alone", "[data][loader]") {
  for (int workers : {0, 2}) {
    auto stateful = make_dataloader(Stateful(), {.batch_size = 2, .workers = workers}, rank_of(1, 2));
    for (int epoch = 1; epoch <= 2; ++epoch) {
      std::vector<std::int64_t> sizes;
      for (auto& batch : stateful) sizes.push_back(batch.data.size(0));
      CHECK(sizes == std::vector<std::int64_t>{2, 2, 1});
      CHECK(stateful.dataset<Stateful>().resets == epoch);
    }
    CHECK_FALSE(stateful.sampler());
    CHECK_FALSE(stateful.has_size());

    std::vector<std::size_t> asked;
    for (auto& batch : make_dataloader(Stream(), {.batch_size = 3, .workers = workers}, rank_of(0, 2)))
      asked.push_back(batch);
    CHECK(asked == std::vector<std::size_t>{3, 3, 1});

    auto lines = make_dataloader(Lines(), {.batch_size = 2, .workers = workers}, rank_of(0, 2));
    CHECK(read(lines) == Numbers{0, 1, 2, 3, 4});
    CHECK(read(lines) == Numbers{0, 1, 2, 3, 4});
    CHECK(read(make_dataloader(Lines(), {.batch_size = 2, .drop_last = true, .workers = workers})) ==
          Numbers{0, 1, 2, 3});
  }
  CHECK_THROWS_AS(make_dataloader(Lines(), {.shuffle = true}), fabric::ConfigError);
}

TEST_CASE("LibTorch's datasets are collated, mapped ones come as they are mapped", "[data][loader]") {
  auto plain = make_dataloader(TorchDataset(), {.batch_size = 2});
  std::vector<std::int64_t> sizes;
  for (auto& batch : plain) {
    static_assert(std::is_same_v<std::remove_reference_t<decltype(batch)>, torch::data::Example<>>);
    sizes.push_back(batch.data.size(0));
  }
  CHECK(sizes == std::vector<std::int64_t>{2, 2, 1});

  auto mapped = make_dataloader(TorchDataset().map(torch::data::transforms::Stack<>()), {.batch_size = 5});
  for (auto& batch : mapped) CHECK(batch.target[4].item<int>() == 4);
  auto normalized =
      make_dataloader(TorchDataset().map(torch::data::transforms::Normalize<>(1.0, 2.0)), {.batch_size = 5});
  for (auto& batch : normalized) CHECK(batch.data.max().item<float>() == 1.5);

  FastDataset fast;
  for (auto& batch : make_dataloader(fast, {.batch_size = 2})) CHECK(batch.data.dim() == 2);
  CHECK(*fast.calls == 3);
  DerivedFast derived;
  for (auto& batch : make_dataloader(derived, {.batch_size = 5})) CHECK(batch.data.dim() == 2);
  CHECK(*derived.calls == 1);
}

TEST_CASE("a dataset's own batches and its own collate are used as they are", "[data][loader]") {
  for (auto& batch : make_dataloader(WholeBatches(), {.batch_size = 5})) {
    REQUIRE(batch.size() == 2);
    CHECK(batch[0].item<int>() == 5);
  }
  for (auto& text : make_dataloader(Joined(), {.batch_size = 8})) CHECK(text == "01234567");
  auto list = make_dataloader(std::vector<float>{1, 2, 3}, {.batch_size = 3});
  for (auto& batch : list) CHECK(batch.sum().template item<float>() == 6);
}

TEST_CASE("datasets are copied, taken over or shared", "[data][loader]") {
  auto shared = std::make_shared<Counting>(Counting{4});
  auto loader = make_dataloader(shared);
  CHECK(&loader.dataset<Counting>() == shared.get());
  CHECK_THROWS_AS(loader.dataset<Lines>(), fabric::MisuseError);
  struct MoveOnly : Counting {
    std::unique_ptr<int> held = std::make_unique<int>(1);
  };
  CHECK(read(make_dataloader(MoveOnly(), {.workers = 2})).size() == 8);
}

TEST_CASE("batches are moved to the device when they are asked for", "[data][loader]") {
  int moved = 0;
  LoaderContext context{.device = c10::Device(c10::kMeta), .to_device = [&](const at::Tensor& tensor) {
                          ++moved;
                          return tensor.to(at::kMeta);
                        }};
  auto loader = make_dataloader(NestedBatches(), {}, context);
  CHECK(loader.device() == c10::Device(c10::kMeta));
  auto it = loader.begin();
  CHECK(moved == 0);
  CHECK(it->image.is_meta());
  CHECK(moved == 2);
  CHECK(it->parts.at("a")[0].is_meta());
  CHECK_FALSE(it->parts.at("a")[1].defined());

  auto default_move = make_dataloader(NestedBatches(), {}, LoaderContext{.device = c10::Device(c10::kMeta)});
  for (auto& batch : default_move) CHECK(batch.image.is_meta());

  auto staying = make_dataloader(NestedBatches(), {.move_to_device = false}, context);
  CHECK_FALSE(staying.device());
  for (auto& batch : staying) CHECK(batch.image.is_cpu());
}

TEST_CASE("a loader is set up once", "[data][loader]") {
  auto plain = make_dataloader(Counting{8}, {.batch_size = 4});
  CHECK(read(plain).size() == 8);
  auto ready = make_dataloader(plain, {}, rank_of(1, 2));
  CHECK(read(ready) == Numbers{1, 3, 5, 7});
  CHECK(fabric::is_wrapped(ready));
  CHECK_THROWS_AS(make_dataloader(ready, {}, rank_of(0, 2)), fabric::MisuseError);
  CHECK_THROWS_AS(make_dataloader(make_dataloader(Counting{8}), {.batch_size = 2}, rank_of(0, 2)), fabric::MisuseError);
  auto whole = make_dataloader(make_dataloader(Counting{8}), {.use_distributed_sampler = false}, rank_of(0, 2));
  CHECK(read(whole).size() == 8);
}

TEST_CASE("wrong options are errors before anything is read", "[data][loader]") {
  using fabric::ConfigError;
  auto sampler = std::make_shared<Recorder>(8);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.batch_size = 0}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.workers = -1}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.prefetch = 0}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.timeout = -1}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.shuffle = true, .sampler = sampler}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.batch_size = 2, .batch_sampler = Pairs(sampler)}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting(), {.sampler = sampler, .batch_sampler = Pairs(sampler)}), ConfigError);
  CHECK_THROWS_AS(make_dataloader(Counting()).set_epoch(-1), ConfigError);
}

TEST_CASE("a second iteration takes over from the first", "[data][loader]") {
  auto loader = make_dataloader(Counting{4});
  auto first = loader.begin();
  CHECK((*first)[0].item<int>() == 0);
  auto second = loader.begin();
  CHECK((*second)[0].item<int>() == 0);
  CHECK_THROWS_AS(++first, fabric::MisuseError);
  ++second;
  CHECK((*second)[0].item<int>() == 1);
}

TEST_CASE("options go into a program's settings", "[data][loader]") {
  DataLoaderOptions options{.batch_size = 32, .shuffle = true, .workers = 3, .seed = 9};
  auto back = fabric::from_tree<DataLoaderOptions>(fabric::to_tree(options));
  CHECK(back.batch_size == 32);
  CHECK(back.shuffle);
  CHECK(back.workers == 3);
  CHECK(back.seed == 9u);
}

TEST_CASE("workers are suggested by cores and processes", "[data]") {
  CHECK(fabric::suggested_max_num_workers(1) >= 1);
  CHECK(fabric::suggested_max_num_workers(1000000) == 1);
  CHECK_THROWS_AS(fabric::suggested_max_num_workers(0), fabric::ConfigError);
}

TEST_CASE("nested data is moved", "[data]") {
  std::map<std::string, std::pair<at::Tensor, int>> data{{"x", {at::full({1}, 1.0), 3}}};
  CHECK(fabric::move_data_to_device(data, c10::Device(c10::kMeta)).at("x").first.is_meta());
  auto doubled = fabric::move_data_to_device(data, [](const at::Tensor& tensor) { return tensor * 2; });
  CHECK(doubled.at("x").first.item<float>() == 2);
  CHECK(doubled.at("x").second == 3);
}
