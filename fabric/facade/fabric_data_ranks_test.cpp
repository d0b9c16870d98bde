// Loaders and what is gathered of their batches, over ranks that are processes.
#include <fabric/fabric.h>
#include <fabric/helpers/metrics.h>

#include <torch/torch.h>

#include <set>

#include "tests/support/group_of_ranks.h"

using fabric::Fabric;
using fabric::Value;

namespace {

std::vector<at::Tensor> numbers(int count) {
  std::vector<at::Tensor> items;
  for (int i = 0; i < count; ++i) items.push_back(torch::full({1}, i, torch::kLong));
  return items;
}

template <class Error, class Action>
bool throws(Action&& action) {
  try {
    action();
  } catch (const Error&) {
    return true;
  }
  return false;
}

}  // namespace

BOTH_BACKENDS_TEST("two ranks that seed themselves differently see each of 1000 samples once", "[fabric][data]", 2) {
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  fabric.launch();
  fabric.seed_everything(42 + rank, true, false);
  auto loader = fabric.setup_dataloader(numbers(1000), {.batch_size = 10, .shuffle = true});
  for (int epoch = 0; epoch < 2; ++epoch) {
    auto counts = torch::zeros({1000}, torch::kLong);
    for (auto& batch : loader) counts.index_add_(0, batch.flatten(), torch::ones_like(batch.flatten()));
    auto all = fabric.all_reduce(counts, fabric::ReduceOp::sum);
    RANK_CHECK(all.eq(1).all().item<bool>());
  }
  // What each rank seeded for itself stays.
  auto own = fabric.all_gather(torch::rand({3}));
  RANK_CHECK(!torch::equal(own[0], own[1]));
  RANK_CHECK(throws<fabric::MismatchError>([&] { fabric.setup_dataloader(numbers(100 + rank), {.batch_size = 10}); }));
  fabric.barrier();
}

RANKS_TEST("what is gathered for metrics holds each sample once, in order", "[fabric][data]", 3) {
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 3});
  fabric.launch();
  // 3 for each of 3 ranks, of which one is repeated, in batches of 2.
  auto loader = fabric.setup_dataloader(numbers(8), {.batch_size = 2});
  std::vector<std::int64_t> seen;
  fabric::MeanMetric mean(fabric);
  fabric::Accuracy accuracy(fabric);
  double scalars = 0;
  for (auto& batch : loader) {
    auto rows = fabric.gather_for_metrics(loader, batch);
    RANK_CHECK(rows.dim() == 2);
    for (std::int64_t i = 0; i < rows.size(0); ++i) seen.push_back(rows[i].item<std::int64_t>());
    auto nested = fabric.gather_for_metrics(loader, Value::Map{{"n", batch}, {"loss", 1.5}});
    RANK_CHECK(torch::equal(nested.at("n").as<at::Tensor>(), rows));
    scalars += nested.at("loss").as<at::Tensor>().sum().item<double>();
    mean.update(loader, batch.flatten().to(torch::kDouble));
    accuracy.update(loader, batch.flatten() % 2, torch::zeros({batch.size(0)}, torch::kLong));
  }
  std::vector<std::int64_t> expected{0, 1, 2, 3, 4, 5, 6, 7};
  RANK_CHECK(seen == expected);
  // Of the last batch rank 2 has nothing of its own.
  RANK_CHECK(scalars == 1.5 * 5);
  RANK_CHECK(mean.compute() == 3.5 && accuracy.compute() == 0.5);
  RANK_CHECK(throws<fabric::MisuseError>([&] { fabric.gather_for_metrics(loader, torch::ones({7})); }));
  fabric.barrier();
}

TEST_CASE("in one process everything that is gathered for metrics is there once", "[fabric][data]") {
  Fabric fabric({.accelerator = "cpu"});
  auto loader = fabric.setup_dataloader(numbers(5), {.batch_size = 2});
  std::int64_t rows = 0;
  for (auto& batch : loader) rows += fabric.gather_for_metrics(loader, batch).size(0);
  CHECK(rows == 5);
  CHECK_THROWS_AS(fabric.gather_for_metrics(loader, Value("text")), fabric::MisuseError);
}
