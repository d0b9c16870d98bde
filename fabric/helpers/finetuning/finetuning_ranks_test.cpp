#include <torch/optim/adam.h>

#include <fabric/fabric.h>
#include <fabric/helpers/finetuning/schedule_reader.h>
#include <fabric/helpers/finetuning/strategy_adapter.h>
#include <fabric/strategies/summon.h>

#include "tests/support/finetuning_trace.h"
#include "tests/support/halved_strategy.h"
#include "tests/support/ranks.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

struct DropNetImpl : torch::nn::Module {
  DropNetImpl() {
    a = register_module("a", torch::nn::Linear(3, 5));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({5})));
    b = register_module("b", torch::nn::Linear(5, 5));
    c = register_module("c", torch::nn::Linear(5, 2));
    to(torch::kDouble);
  }
  at::Tensor forward(const at::Tensor& x) { return c(torch::tanh(b(norm(torch::tanh(a(x)))))); }
  torch::nn::Linear a{nullptr}, b{nullptr}, c{nullptr};
  torch::nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(DropNet);

struct Seen {
  Ints depth, groups, thawed;
  std::vector<Lrs> lrs;
  std::vector<at::Tensor> weights;
  int last = -1;
};

const char* const kSchedule =
    "0: {params: [c]}\n1: {params: [b], freeze: [c.bias]}\n2: {params: [norm], new_optimizer: {optimizer_init: "
    "{class_path: "
    "AdamW, init_args: {lr: 1.0e-3}}}}\n3: {params: [a, c.bias]}";

// The same loop with Fabric and without it; `rank` and `world` choose the part of each batch.
template <class Model, class Optimizer, class Backward>
Seen train(Model& model, Optimizer& optimizer, FinetuningScheduler& schedule, EarlyStopping& stop,
           ModelCheckpoint& keep, torch::nn::Module& net, int rank, int world, const Backward& backward, int first = 0,
           int epochs = 20) {
  Seen seen;
  const std::vector<double> losses{5, 4, 3};
  for (int epoch = first; epoch < epochs && !schedule.done() && !stop.stopped(); ++epoch) {
    schedule.epoch_start(epoch);
    seen.last = epoch;
    seen.depth.push_back(schedule.curr_depth());
    Lrs rates;
    for (auto& group : schedule.optimizer().param_groups()) rates.push_back(get_lr(group));
    seen.lrs.push_back(rates);
    seen.groups.push_back(static_cast<int>(rates.size()));
    seen.thawed.push_back(static_cast<int>(schedule.thawed_params().size()));
    torch::manual_seed(7 + epoch);
    for (int step = 0; step < 3; ++step) {
      auto batch = torch::randn({8, 3}, torch::kDouble).slice(0, rank, 8, world).contiguous();
      optimizer.zero_grad();
      backward(model, batch);
      optimizer.step();
      schedule.step_end();
    }
    Metrics metrics{{"val_loss", losses[std::min<std::size_t>(static_cast<std::size_t>(epoch), 2)]}};
    stop.check(metrics, epoch);
    keep.update(metrics,
                State{{"model", net},
                      {"optimizer", schedule.optimizer()},
                      {"schedule", schedule},
                      {"stop", stop},
                      {"keep", keep}},
                {.epoch = epoch, .step = schedule.ft_global_steps()});
    schedule.epoch_end(metrics);
  }
  return seen;
}

std::vector<at::Tensor> weights_of(const torch::nn::Module& module) {
  std::vector<at::Tensor> weights;
  for (const auto& parameter : module.parameters()) weights.push_back(parameter.detach().clone());
  return weights;
}

struct PlainOptimizer {
  std::shared_ptr<torch::optim::Optimizer>& optimizer;
  void zero_grad() { optimizer->zero_grad(); }
  void step() { optimizer->step(); }
};

FinetuningScheduler::Config config_for(const std::string& folder) {
  FinetuningScheduler::Config config;
  config.ft_schedule = tree(kSchedule);
  config.restore_best = false;
  config.log_dir = folder;
  config.logging_level = "warn";
  return config;
}

Seen alone(const std::string& folder, bool restore) {
  torch::manual_seed(3);
  DropNet net;
  std::shared_ptr<torch::optim::Optimizer> optimizer =
      std::make_shared<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  std::unique_ptr<LRScheduler> lr = std::make_unique<StepLR>(*optimizer, StepLR::Config{.step_size = 1, .gamma = 0.7});
  auto config = config_for(folder);
  config.restore_best = restore;
  if (restore) config.ft_schedule = {};
  FinetuningScheduler schedule(config, net, optimizer, lr);
  EarlyStopping stop({.monitor = "val_loss", .patience = 1});
  ModelCheckpoint keep({.dirpath = folder + "/alone", .monitor = "val_loss"});
  schedule.attach(stop, keep);
  PlainOptimizer plain{optimizer};
  Seen seen = train(net, plain, schedule, stop, keep, *net, 0, 1,
                    [](DropNet& model, const at::Tensor& x) { model(x).square().mean().backward(); });
  seen.weights = weights_of(*net);
  return seen;
}

struct Options {
  bool restore = false;
  std::function<void(FinetuningScheduler::Config&)> change = {};
  int epochs = 20;
  std::string resume_from = {};
  int save_top_k = 1;
};

Seen together(const std::string& folder, Fabric& fabric, const Options& options) {
  torch::manual_seed(3);
  DropNet raw;
  auto sgd = std::make_shared<torch::optim::SGD>(raw->parameters(), torch::optim::SGDOptions(0.05).momentum(0.9));
  auto [net, optimizer] = fabric.setup(raw, sgd);
  std::unique_ptr<LRScheduler> lr = std::make_unique<StepLR>(*optimizer, StepLR::Config{.step_size = 1, .gamma = 0.7});
  auto config = config_for(folder);
  config.restore_best = options.restore;
  if (options.restore) config.ft_schedule = {};
  if (options.change) options.change(config);
  FinetuningScheduler schedule(config, net, optimizer, lr);
  EarlyStopping stop({.monitor = "val_loss", .patience = 1}, fabric);
  ModelCheckpoint keep({.dirpath = folder + "/together", .monitor = "val_loss", .save_top_k = options.save_top_k},
                       fabric);
  schedule.attach(stop, keep);
  if (!options.resume_from.empty()) {
    State state{{"model", net}, {"optimizer", optimizer}, {"schedule", schedule}, {"stop", stop}, {"keep", keep}};
    fabric.load(options.resume_from, state);
  }
  Seen seen = train(
      net, optimizer, schedule, stop, keep, *raw, fabric.global_rank(), fabric.world_size(),
      [&](auto& model, const at::Tensor& x) { fabric.backward(model(x).square().mean()); }, schedule.ft_epoch() + 1,
      options.epochs);
  {
    auto whole = fabric::summon(net);
    seen.weights = weights_of(*raw);
  }
  if (auto* split = dynamic_cast<halved::Module*>(&net.strategy_module())) {
    seen.weights.clear();
    for (const auto& parameter : raw->parameters()) seen.weights.push_back(split->whole(parameter));
  }
  return seen;
}

std::string shared_folder() {
  auto path =
      std::filesystem::temp_directory_path() / ("fabric_finetuning_ranks_" + std::string(std::getenv("MASTER_PORT")));
  std::filesystem::create_directories(path);
  return path.string();
}

void check_equal(const Seen& together, const Seen& alone) {
  RANK_CHECK(together.depth == alone.depth);
  RANK_CHECK(together.groups == alone.groups);
  RANK_CHECK(together.thawed == alone.thawed);
  RANK_CHECK(together.last == alone.last);
  for (std::size_t i = 0; i < together.lrs.size(); ++i) RANK_CHECK(close(together.lrs[i], alone.lrs[i]));
  for (std::size_t i = 0; i < together.weights.size(); ++i)
    RANK_CHECK(torch::allclose(together.weights[i], alone.weights[i], 1e-9, 1e-10));
}

void compare_with_one_process(int rank, const Choice& strategy) {
  at::set_num_threads(1);
  auto folder = shared_folder();
  for (bool restore : {false, true}) {
    Fabric fabric({.accelerator = "cpu", .strategy = strategy, .devices = 2});
    fabric.launch();
    Seen both = together(folder, fabric, {.restore = restore});
    fabric.barrier();
    if (rank == 0) check_equal(both, alone(folder, restore));
    fabric.barrier();
    RANK_CHECK(both.depth.back() == 3);
  }
  if (rank == 0) std::filesystem::remove_all(folder);
}

}  // namespace

RANKS_TEST("two ranks of ddp go through a schedule as one process does", "[finetuning][ranks]", 2) {
  compare_with_one_process(rank, "ddp");
}

RANKS_TEST("two ranks of ddp that look for unused parameters go through a schedule", "[finetuning][ranks]", 2) {
  compare_with_one_process(rank, Choice("ddp", {{"find_unused_parameters", true}}));
}

RANKS_TEST("two ranks that do not keep gradients in buckets go through a schedule", "[finetuning][ranks]", 2) {
  compare_with_one_process(rank, Choice("ddp", {{"gradient_as_bucket_view", false}, {"bucket_cap_mb", 0}}));
}

RANKS_TEST("two ranks of a strategy that shards parameters go through a schedule", "[finetuning][ranks][sharded]", 2) {
  halved::register_strategy();
  compare_with_one_process(rank, "halved");
}

RANKS_TEST("two ranks of fsdp go through a schedule", "[finetuning][ranks][fsdp]", 2) {
  compare_with_one_process(rank, "fsdp");
  compare_with_one_process(rank,
                           Choice("fsdp", {{"sharding_strategy", "SHARD_GRAD_OP"}, {"auto_wrap_policy", "none"}}));
}

RANKS_TEST("ranks that disagree about the end of a phase go on together, with a warning", "[finetuning][ranks]", 2) {
  auto folder = shared_folder();
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  fabric.launch();
  {
    Script script;
    script.config.log_dir = folder;
    script.config.restore_best = false;
    script.checkpoints = false;
    script.early_stopping = false;
    script.peers = Peers(fabric);
    Run run(script);
    EarlyStopping stop({.monitor = "val_loss", .patience = 1});  // knows nothing of the other rank
    run.schedule->attach(stop);
    run.schedule->epoch_start(0);
    stop.check({{"val_loss", 1.0}}, 0);
    run.schedule->epoch_end();
    run.schedule->epoch_start(1);
    stop.check({{"val_loss", rank == 0 ? 0.5 : 2.0}}, 1);
    run.schedule->epoch_end();
    RANK_CHECK(run.schedule->epoch_start(2));
    RANK_CHECK(run.schedule->curr_depth() == 1);
    RANK_CHECK(run.optimizer->param_groups().size() == 2);
    RANK_CHECK(run.said.warned("1 of 2 ranks found phase 0 to be done") == (rank == 0));
  }
  fabric.barrier();
  if (rank == 0) std::filesystem::remove_all(folder);
}

RANKS_TEST("a checkpoint that one rank cannot read is an error on every rank", "[finetuning][ranks]", 2) {
  auto folder = shared_folder();
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  fabric.launch();
  {
    Net net;
    std::shared_ptr<torch::optim::Optimizer> optimizer =
        std::make_shared<torch::optim::SGD>(net->parameters(), torch::optim::SGDOptions(0.1));
    FinetuningScheduler::Config config;
    config.log_dir = folder;
    config.logging_level = "error";
    FinetuningScheduler::Parts parts;
    parts.peers = Peers(fabric);
    parts.load = [rank](const std::string& path) {
      if (rank == 1) throw CheckpointError("the disk of rank 1 is gone");
      return make_checkpoint_io()->load(path);
    };
    FinetuningScheduler schedule(config, net, optimizer, {}, parts);
    EarlyStopping stop({.monitor = "val_loss", .patience = 1}, fabric);
    ModelCheckpoint keep({.dirpath = folder + "/c", .monitor = "val_loss"}, fabric);
    schedule.attach(stop, keep);
    std::string error;
    for (int epoch = 0; epoch < 3; ++epoch) {
      error = error_of<CheckpointError>([&] { schedule.epoch_start(epoch); });
      stop.check({{"val_loss", 1.0}}, epoch);
      keep.update({{"val_loss", 1.0}}, State{{"model", net}, {"optimizer", *optimizer}},
                  {.epoch = epoch, .step = epoch + 1});
    }
    RANK_CHECK(contains(error, "the disk of rank 1 is gone"));
    RANK_CHECK(schedule.curr_depth() == 0);
  }
  fabric.barrier();
  if (rank == 0) std::filesystem::remove_all(folder);
}

RANKS_TEST("the schedule file is read by rank 0 alone, for all", "[finetuning][ranks]", 2) {
  auto folder = shared_folder();
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  fabric.launch();
  {
    const std::string mine = folder + "/only_on_rank_0.yaml";
    if (rank == 0) std::ofstream(mine) << "0: {params: [model.3]}\n1: {params: [model.2]}\n";
    auto source = load_schedule_source(rank == 0 ? mine : "/nowhere/s.yaml", Peers(fabric));
    RANK_CHECK(read_schedule(source, {}).size() == 2);
    auto error =
        error_of<ConfigError>([&] { load_schedule_source(rank == 0 ? "/nowhere/s.yaml" : mine, Peers(fabric)); });
    RANK_CHECK(contains(error, "/nowhere/s.yaml"));
  }
  fabric.barrier();
  if (rank == 0) std::filesystem::remove_all(folder);
}

namespace {

struct ToldAdapter : StrategyAdapter {
  std::string name() const override { return "told"; }
  void parameters_changed() override {
    ++told;
    StrategyAdapter::parameters_changed();
  }
  static inline int told = 0;
};

}  // namespace

RANKS_TEST("a user's own adapter, registered by name, with ddp", "[finetuning][ranks][adapter]", 2) {
  at::set_num_threads(1);
  auto folder = shared_folder();
  StrategyAdapterRegistry::instance().register_adapter("mine:Told",
                                                       [](const Tree&) { return std::make_shared<ToldAdapter>(); });
  Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  fabric.launch();
  Seen both = together(folder, fabric, {.restore = true, .change = [](FinetuningScheduler::Config& config) {
                                          config.custom_strategy_adapters = {{"ddp", "mine.Told"}};
                                        }});
  RANK_CHECK(ToldAdapter::told == 4);  // at the start and at each of three transitions
  fabric.barrier();
  if (rank == 0) check_equal(both, alone(folder, true));
  fabric.barrier();
  if (rank == 0) std::filesystem::remove_all(folder);
}

RANKS_TEST("two ranks of ddp resume in the middle of a schedule", "[finetuning][ranks][resume]", 2) {
  at::set_num_threads(1);
  for (bool restore : {true, false}) {
    auto folder = shared_folder();
    Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
    fabric.launch();
    Seen whole = together(folder + "/whole", fabric, {.restore = restore, .save_top_k = -1});
    for (int epoch : {1, 3, 4, 5}) {
      const std::string part = folder + "/part" + std::to_string(epoch);
      together(part, fabric, {.restore = restore, .epochs = epoch + 1, .save_top_k = -1});
      const std::string file = part + "/together/epoch=" + std::to_string(epoch) +
                               "-step=" + std::to_string(3 * (epoch + 1)) + ".safetensors";
      Seen rest = together(part, fabric, {.restore = restore, .resume_from = file, .save_top_k = -1});
      RANK_CHECK(rest.depth == Ints(whole.depth.begin() + epoch + 1, whole.depth.end()));
      RANK_CHECK(rest.groups == Ints(whole.groups.begin() + epoch + 1, whole.groups.end()));
      RANK_CHECK(rest.last == whole.last);
      for (std::size_t i = 0; i < rest.weights.size(); ++i) RANK_CHECK(torch::equal(rest.weights[i], whole.weights[i]));
    }
    fabric.barrier();
    if (rank == 0) std::filesystem::remove_all(folder);
    fabric.barrier();
  }
}
