#include <fabric/helpers/finetuning/frozen_parameters.h>

#include "tests/support/finetuning_trace.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

struct NormNetImpl : torch::nn::Module {
  NormNetImpl() {
    first = register_module("first", torch::nn::Linear(3, 3));
    norm = register_module("norm", torch::nn::BatchNorm1d(3));
    head = register_module("head", torch::nn::Linear(3, 3));
  }
  at::Tensor forward(const at::Tensor& x) { return head(norm(first(x))); }
  torch::nn::Linear first{nullptr}, head{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(NormNet);

const char* const kSchedule =
    "0: {params: [head], max_transition_epoch: 1}\n1: {params: [norm], max_transition_epoch: 2}\n2: {params: [first]}";

// Batches counted at the start of each of three epochs of 32 batches, by the registered buffer.
Ints counted(bool track, const std::vector<double>& losses) {
  Folder folder;
  NormNet net;
  auto optimizer = std::make_shared<torch::optim::SGD>(net->parameters(), 1e-3);
  FinetuningScheduler::Config config;
  config.ft_schedule = tree(kSchedule);
  config.frozen_bn_track_running_stats = track;
  config.log_dir = folder.path.string();
  config.logging_level = "error";
  FinetuningScheduler schedule(config, net, optimizer);
  ModelCheckpoint keep({.dirpath = folder.file("ckpt"), .monitor = "val_loss"});
  schedule.attach(keep);
  Ints counts;
  for (int epoch = 0; epoch < 3; ++epoch) {
    schedule.epoch_start(epoch);
    counts.push_back(net->named_buffers()["norm.num_batches_tracked"].item<int>());
    net->train();
    for (int batch = 0; batch < 32; ++batch) {
      optimizer->zero_grad();
      net(torch::randn({8, 3})).square().mean().backward();
      optimizer->step();
    }
    keep.update({{"val_loss", losses[static_cast<std::size_t>(epoch)]}},
                State{{"model", net}, {"optimizer", *optimizer}}, {.epoch = epoch, .step = 32 * (epoch + 1)});
    schedule.epoch_end();
  }
  return counts;
}

}  // namespace

TEST_CASE("batches that batch norm counts while it is frozen and after", "[finetuning][batchnorm]") {
  CHECK(counted(true, {3, 2, 1}) == Ints{0, 32, 64});
  CHECK(counted(false, {3, 4, 5}) == Ints{0, 0, 0});  // the best is epoch 0's, whose buffers come back
  CHECK(counted(false, {3, 2, 1}) == Ints{0, 0, 32});
}

TEST_CASE("held batch norm: batch statistics in training, the running ones in evaluation, none changed",
          "[finetuning][batchnorm]") {
  NormNet net;
  net->norm->running_mean.fill_(0.25);
  net->norm->running_var.fill_(4.0);
  at::Tensor x = torch::randn({16, 3}) * 3 + 1;
  for (bool cumulative : {false, true}) {
    if (cumulative) net->norm->options.momentum(std::nullopt);
    const auto momentum = net->norm->options.momentum();
    for (auto& parameter : net->parameters()) parameter.set_requires_grad(false);
    {
      FrozenBatchNorm frozen(net.ptr());
      frozen.update();
      net->train();
      at::Tensor trained = net->norm(x);
      CHECK(trained.mean(0).abs().max().item<double>() < 1e-5);
      CHECK(torch::allclose(trained.var(0, false), torch::ones(3), 1e-3, 1e-3));
      net->eval();
      CHECK(torch::allclose(net->norm(x), (x - 0.25) / std::sqrt(4.0 + 1e-5), 1e-5, 1e-5));
      CHECK(torch::equal(net->norm->running_mean, torch::full({3}, 0.25)));
      CHECK(torch::equal(net->norm->running_var, torch::full({3}, 4.0)));
      CHECK(net->named_buffers()["norm.num_batches_tracked"].item<int>() == 0);
      net->norm->weight.set_requires_grad(true);
      frozen.update();
      CHECK(net->norm->options.momentum() == momentum);
      CHECK(net->norm->num_batches_tracked.is_same(net->named_buffers()["norm.num_batches_tracked"]));
      net->norm->weight.set_requires_grad(false);
      frozen.update();
    }
    CHECK(net->norm->options.momentum() == momentum);  // released with the object
    CHECK(net->norm->num_batches_tracked.defined());
  }
  net->train();
  net->norm(x);
  CHECK(net->norm->num_batches_tracked.item<int>() == 1);
}

TEST_CASE("layers without parameters are left alone", "[finetuning][batchnorm]") {
  torch::nn::BatchNorm1d plain(torch::nn::BatchNorm1dOptions(3).affine(false));
  FrozenBatchNorm frozen(plain.ptr());
  frozen.update();
  plain->train();
  plain(torch::randn({4, 3}));
  CHECK(plain->num_batches_tracked.item<int>() == 1);
}

TEST_CASE("freezing takes the gradient, too", "[finetuning]") {
  Net net;
  ModelParameters parameters(*net);
  net->forward(torch::randn({2, 3})).sum().backward();
  CHECK(thaw_exactly(parameters, {"model.3.bias"}));
  CHECK(!thaw_exactly(parameters, {"model.3.bias"}));
  for (const auto& item : net->named_parameters()) {
    CHECK(item.value().requires_grad() == (item.key() == "model.3.bias"));
    CHECK(item.value().grad().defined() == (item.key() == "model.3.bias"));
  }
}
