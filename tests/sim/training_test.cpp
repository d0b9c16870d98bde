// Training through Fabric on the simulated device: the CPU's numbers bit by bit, nothing found by the order checker,
// and the host held up no more often than it has to be.
#include <fabric/fabric.h>
#include <fabric/optim/fused.h>
#include <fabric/plugins/precision/mixed_precision.h>

#include "tests/sim/sim_test_support.h"
#include "tests/support/sim_device/parts.h"

using at::Tensor;

namespace {

struct ConvNetImpl : torch::nn::Module {
  ConvNetImpl() {
    first = register_module("first", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 6, 3).padding(1).bias(false)));
    norm = register_module("norm", torch::nn::BatchNorm2d(6));
    second = register_module("second", torch::nn::Conv2d(torch::nn::Conv2dOptions(6, 8, 3).padding(1)));
    groups = register_module("groups", torch::nn::GroupNorm(torch::nn::GroupNormOptions(2, 8)));
    head = register_module("head", torch::nn::Linear(32, 10));
  }
  Tensor forward(const Tensor& x) {
    auto hidden = torch::max_pool2d(torch::relu(norm(first(x))), 2);
    hidden = torch::adaptive_avg_pool2d(torch::gelu(groups(second(hidden))), {2, 2});
    return head(torch::dropout(hidden.flatten(1), 0.25, is_training()));
  }
  torch::nn::Conv2d first{nullptr}, second{nullptr};
  torch::nn::BatchNorm2d norm{nullptr};
  torch::nn::GroupNorm groups{nullptr};
  torch::nn::Linear head{nullptr};
};
TORCH_MODULE(ConvNet);

struct TransformerImpl : torch::nn::Module {
  static constexpr std::int64_t kWidth = 32, kHeads = 4, kWords = 50;
  TransformerImpl() {
    words = register_module("words", torch::nn::Embedding(kWords, kWidth));
    before = register_module("before", torch::nn::LayerNorm(torch::nn::LayerNormOptions({kWidth})));
    qkv = register_module("qkv", torch::nn::Linear(kWidth, 3 * kWidth));
    out = register_module("out", torch::nn::Linear(kWidth, kWidth));
    up = register_module("up", torch::nn::Linear(kWidth, 2 * kWidth));
    down = register_module("down", torch::nn::Linear(2 * kWidth, kWidth));
    head = register_module("head", torch::nn::Linear(kWidth, kWords));
  }
  Tensor forward(const Tensor& tokens) {
    auto x = words(tokens);
    auto parts = qkv(before(x)).view({x.size(0), x.size(1), 3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4});
    auto seen = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, /*is_causal=*/true);
    x = x + out(seen.transpose(1, 2).reshape(x.sizes()));
    return head(x + down(torch::gelu(up(x)))).flatten(0, 1);
  }
  torch::nn::Embedding words{nullptr};
  torch::nn::LayerNorm before{nullptr};
  torch::nn::Linear qkv{nullptr}, out{nullptr}, up{nullptr}, down{nullptr}, head{nullptr};
};
TORCH_MODULE(Transformer);

struct Batch {
  Tensor data, target;
};
Batch images() { return {torch::randn({16, 1, 8, 8}), torch::randint(10, {16})}; }
Batch texts() { return {torch::randint(50, {4, 12}), torch::randint(50, {48})}; }

struct Outcome {
  std::vector<Tensor> tensors;  // parameters and buffers, on the CPU
  std::vector<float> losses;
  std::uint64_t waits = 0;  // of the host, in the last ten steps
};

constexpr int kSteps = 12, kCounted = 10;

template <class Net, class MakeOptimizer>
Outcome train(const std::string& accelerator, Net net, Batch (*make_batch)(), MakeOptimizer&& make_optimizer,
              const std::string& precision = "32-true", double max_norm = 0) {
  fabric::Fabric fabric(
      {.accelerator = accelerator, .strategy = "single_device", .devices = 1, .precision = precision});
  fabric.launch();
  fabric.seed_everything(11);
  auto batch = make_batch();
  auto [model, optimizer] = fabric.setup(net, make_optimizer);
  auto data = fabric.to_device(batch.data), target = fabric.to_device(batch.target);
  fabric.seed_everything(12);  // the batch was drawn on the CPU in either case
  Outcome outcome;
  std::vector<Tensor> losses;
  sim::Count count;
  for (int step = 0; step < kSteps; ++step) {
    if (step == kSteps - kCounted) count = sim::Count();
    optimizer.zero_grad();
    auto loss = torch::nll_loss(torch::log_softmax(model(data), 1), target);
    fabric.backward(loss);
    if (max_norm > 0) fabric.clip_gradients(model, optimizer, {.max_norm = max_norm, .error_if_nonfinite = false});
    optimizer.step();
    losses.push_back(loss.detach());
  }
  outcome.waits = count.host_waits();
  for (const auto& loss : losses) outcome.losses.push_back(loss.template item<float>());
  for (const auto& tensor : net->parameters()) outcome.tensors.push_back(tensor.detach().cpu());
  for (const auto& tensor : net->buffers()) outcome.tensors.push_back(tensor.detach().cpu());
  fabric.shutdown();
  return outcome;
}

template <class Net>
Net seeded() {
  torch::manual_seed(3);
  return Net();
}

void check_same(const Outcome& ours, const Outcome& cpu) {
  CHECK(ours.losses == cpu.losses);
  CHECK(ours.losses.back() < ours.losses.front());
  REQUIRE(ours.tensors.size() == cpu.tensors.size());
  for (std::size_t i = 0; i < ours.tensors.size(); ++i) {
    INFO("tensor " << i);
    CHECK(at::equal(ours.tensors[i], cpu.tensors[i]));
  }
}

const auto kAdamW = [](auto parameters) { return torch::optim::AdamW(parameters, torch::optim::AdamWOptions(1e-2)); };
const auto kFusedAdamW = [](auto parameters) {
  return fabric::optim::AdamW(parameters, fabric::optim::AdamWOptions(1e-2));
};
const auto kFusedSgd = [](auto parameters) {
  return fabric::optim::SGD(parameters, fabric::optim::SGDOptions(0.05).momentum(0.9));
};

}  // namespace

TEST_CASE("training on the device gives the CPU's numbers bit by bit, and never holds up the host", "[sim][training]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto compare = [](auto make_net, Batch (*batch)(), auto optimizer, double max_norm) {
    auto ours = train("sim", make_net(), batch, optimizer, "32-true", max_norm);
    check_same(ours, train("cpu", make_net(), batch, optimizer, "32-true", max_norm));
    CHECK(ours.waits == 0);
  };
  SECTION("convolutions, AdamW") { compare(seeded<ConvNet>, images, kAdamW, 0); }
  SECTION("convolutions, fused SGD, clipping") { compare(seeded<ConvNet>, images, kFusedSgd, 1.0); }
  SECTION("attention, AdamW, clipping") { compare(seeded<Transformer>, texts, kAdamW, 0.5); }
  SECTION("attention, fused AdamW") { compare(seeded<Transformer>, texts, kFusedAdamW, 0); }
}

TEST_CASE("a step with a loss scaler holds up the host once, one in bfloat16 never", "[sim][training][precision]") {
  sim::CleanRun clean;
  sim::register_parts();
  SECTION("bf16-mixed") {
    auto outcome = train("sim", seeded<Transformer>(), texts, kFusedAdamW, "bf16-mixed", 1.0);
    CHECK(outcome.losses.back() < outcome.losses.front());
    CHECK(outcome.waits == 0);
  }
  SECTION("16-mixed") {
    auto outcome = train("sim", seeded<Transformer>(), texts, kFusedAdamW, "16-mixed");
    CHECK(outcome.losses.back() < outcome.losses.front());
    CHECK(outcome.waits == kCounted);
  }
  SECTION("16-mixed with clipping") {
    auto outcome = train("sim", seeded<Transformer>(), texts, kFusedAdamW, "16-mixed", 1.0);
    CHECK(outcome.losses.back() < outcome.losses.front());
    CHECK(outcome.waits == kCounted);
  }
  SECTION("true precisions") {
    for (const char* precision : {"bf16-true", "64-true"}) {
      auto ours = train("sim", seeded<Transformer>(), texts, kFusedSgd, precision);
      check_same(ours, train("cpu", seeded<Transformer>(), texts, kFusedSgd, precision));
      CHECK(ours.waits == 0);
    }
  }
}

TEST_CASE("an overflow on the device skips the step and halves the scale", "[sim][training][precision]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto scaler =
      std::make_shared<fabric::GradScaler>(fabric::GradScaler::Config{.init_scale = 1 << 30, .growth_interval = 5});
  auto precision = std::make_shared<fabric::MixedPrecision>(torch::kHalf, c10::DeviceType::PrivateUse1, scaler);
  fabric::Fabric fabric({.accelerator = "sim", .strategy = "single_device", .devices = 1}, {.precision = precision});
  fabric.launch();
  auto [model, optimizer] = fabric.setup(torch::nn::Linear(8, 4), kFusedSgd);
  auto data = fabric.to_device(torch::randn({16, 8})), target = fabric.to_device(torch::randint(4, {16}));
  int skipped = 0;
  for (int step = 0; step < 20; ++step) {
    optimizer.zero_grad();
    fabric.backward(torch::nll_loss(torch::log_softmax(model(data), 1), target));
    optimizer.step();
    // Asked for again, it is not read again.
    sim::Count count;
    skipped += precision->step_was_skipped();
    CHECK(count.host_waits() == 0);
  }
  CHECK(skipped > 0);
  CHECK(skipped < 20);
  for (const auto& parameter : model->parameters()) CHECK(parameter.isfinite().all().template item<bool>());
  fabric.shutdown();
}
