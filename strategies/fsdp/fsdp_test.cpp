#include <fabric/plugins/precision/mixed_precision.h>

#include "strategies/fsdp/fsdp_test_support.h"

using namespace fsdp_test;
using fabric::Tree;

namespace {

void require_close(const char* what, double difference, double bound) {
  if (!(difference <= bound))
    throw std::runtime_error(std::string(what) + ": parameters differ from one process's by " +
                             std::to_string(difference / bound) + " times the bound");
}

void train(const char* what, int world, const Tree::Map& params, const Training& training, at::ScalarType type,
           double bound, int steps, const Whole& expected) {
  Fabric fabric(settings(world, params));
  fabric.launch();
  auto raw = make_text(5, type);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  auto norms = training.run(fabric, model, optimizer, 0, steps);
  for (std::size_t i = 0; i < norms.size(); ++i)
    RANK_CHECK(std::abs(norms[i] - expected.norms[i]) <= 100 * bound * expected.norms[i]);
  require_close(what, difference(model, expected.parameters), bound);
}

void check_parity(int world) {
  at::set_num_threads(1);
  const int steps = 6;
  Training plain, local{.accumulate_locally = true}, value{.parts = 1, .max_norm = {}, .clip_val = 0.01};
  auto expected = alone(steps, plain), clipped = alone(steps, value),
       single = alone(steps, plain, "32-true", at::kFloat);
  auto full = Tree::Map{{"sharding_strategy", "FULL_SHARD"}};
  train("full", world, full, plain, at::kDouble, 1e-12, steps, expected);
  train("full, local accumulation", world, full, local, at::kDouble, 1e-12, steps, expected);
  train("full, clipped by value", world, full, value, at::kDouble, 1e-12, steps, clipped);
  train("full, single precision", world, full, plain, at::kFloat, 1e-5, steps, single);
  train("one unit", world, Tree::Map{{"auto_wrap_policy", "none"}}, plain, at::kDouble, 1e-12, steps, expected);
  for (bool locally : {false, true}) {
    const auto& way = locally ? local : plain;
    train("grad op", world, Tree::Map{{"sharding_strategy", "SHARD_GRAD_OP"}}, way, at::kDouble, 1e-12, steps,
          expected);
    train("no shard", world, Tree::Map{{"sharding_strategy", "NO_SHARD"}}, way, at::kDouble, 1e-12, steps, expected);
  }
  train("offload", world, Tree::Map{{"cpu_offload", true}}, plain, at::kDouble, 1e-12, steps, expected);
  // Without the comparison before each collective.
  train("unchecked", world, Tree::Map{{"process_group", Tree::Map{{"check", false}}}}, plain, at::kDouble, 1e-12, steps,
        expected);
}

}  // namespace

RANKS_TEST("fsdp over two ranks trains as one process on the joined batch", "[fsdp]", 2) { check_parity(2); }
RANKS_TEST("fsdp over three ranks trains as one process on the joined batch", "[fsdp]", 3) { check_parity(3); }

RANKS_TEST("hybrid fsdp over four ranks trains as one process on the joined batch", "[fsdp]", 4) {
  at::set_num_threads(1);
  Training plain;
  auto expected = alone(5, plain);
  for (const char* name : {"HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"})
    train(name, 4, Tree::Map{{"sharding_strategy", name}, {"device_mesh", Tree::List{2, 2}}}, plain, at::kDouble, 1e-12,
          5, expected);
  RANK_CHECK(has(
      error_of([] {
        Fabric fabric(settings(4, Tree::Map{{"sharding_strategy", "HYBRID_SHARD"}, {"device_mesh", Tree::List{3, 2}}}));
        fabric.launch();
        fabric.setup(make_text());
      }),
      "set device_mesh"));
}

TEST_CASE("fsdp with one rank is bitwise the loop of one process", "[fsdp]") {
  at::set_num_threads(1);
  for (const char* precision : {"64-true", "32-true", "bf16-true"}) {
    auto expected = alone(4, {}, precision, at::kFloat);
    Fabric fabric(settings(1, Tree::Map{}, precision));
    fabric.launch();
    auto raw = make_text(5, at::kFloat);
    auto [model, optimizer] = fabric.setup(raw, adamw);
    Training().run(fabric, model, optimizer, 0, 4);
    for (std::size_t i = 0; i < expected.parameters.size(); ++i)
      CHECK(torch::equal(raw->parameters()[i], expected.parameters[i]));
  }
}

RANKS_TEST("fsdp holds a part of each parameter, and large ones travel alone", "[fsdp]", 2) {
  at::set_num_threads(1);
  const int width = 300;  // a block's matrices are above the size from which on they travel alone
  auto expected = alone(3, {}, "32-true", at::kDouble, width);
  Fabric fabric(settings(2));
  fabric.launch();
  auto raw = make_text(width);
  std::int64_t all = 0, held = 0;
  for (const auto& parameter : raw->parameters()) all += parameter.numel();
  auto [model, optimizer] = fabric.setup(raw, adamw);
  for (const auto& parameter : raw->parameters()) held += parameter.numel();
  RANK_CHECK(held < 0.51 * static_cast<double>(all));
  RANK_CHECK(raw->wte->weight.size(0) == (rank == 0 ? 6 : 5) && raw->wte->weight.requires_grad());
  RANK_CHECK(raw->wte->weight.is_same(raw->lm_head->weight));
  Training().run(fabric, model, optimizer, 0, 3);
  require_close("large", difference(model, expected.parameters), 1e-12);
  auto text = std::static_pointer_cast<fabric::FSDPStrategy>(fabric.strategy())->describe(model.strategy_module());
  RANK_CHECK(has(text, "blocks.2") && has(text, "wte") && has(text, "(rest)"));
}

RANKS_TEST("fsdp works with the precisions", "[fsdp]", 2) {
  at::set_num_threads(1);
  for (const char* precision : {"bf16-mixed", "bf16-true"}) {
    auto expected = alone(6, {}, precision, at::kFloat);
    Fabric fabric(settings(2, Tree::Map{}, precision));
    fabric.launch();
    auto raw = make_text(5, at::kFloat);
    auto [model, optimizer] = fabric.setup(raw, adamw);
    Training().run(fabric, model, optimizer, 0, 6);
    const bool is_mixed = std::string(precision) == "bf16-mixed";
    RANK_CHECK(raw->single.scalar_type() == (is_mixed ? at::kFloat : at::kBFloat16));
    RANK_CHECK(raw->wte->weight.grad().scalar_type() == raw->single.scalar_type());
    // Sixteen bits turn signs of small gradients, which AdamW makes large.
    auto whole = fabric::summon(model);
    double apart = 0, size = 0;
    for (std::size_t i = 0; i < expected.parameters.size(); ++i) {
      const auto& parameter = expected.parameters[i];
      apart += (raw->parameters()[i].detach() - parameter).to(at::kDouble).square().sum().item<double>();
      size += parameter.to(at::kDouble).square().sum().item<double>();
    }
    require_close(precision, std::sqrt(apart / size), 0.1);
  }
  // Parameters in 16 bits while they are whole, everything else in 32.
  Fabric fabric(settings(2,
                         Tree::Map{{"mixed_precision", Tree::Map{{"param_dtype", "bf16"},
                                                                 {"buffer_dtype", "bf16"},
                                                                 {"reduce_dtype", "fp32"},
                                                                 {"output_dtype", "fp32"}}}},
                         "32-true"));
  fabric.launch();
  auto raw = make_text(5, at::kFloat);
  auto [model, optimizer] = fabric.setup(raw, adamw);
  auto ids = batch(0, 0, rank, 2);
  auto inside = at::kFloat;
  auto logits = model.call(
      [&](TextImpl& net, const at::Tensor& x) {
        auto out = net.forward(x);
        inside = out.scalar_type();
        return out;
      },
      ids);
  RANK_CHECK(inside == at::kBFloat16 && logits.scalar_type() == at::kFloat);
  fabric.backward(loss_of(logits, ids));
  optimizer.step();
  RANK_CHECK(raw->single.scalar_type() == at::kFloat && raw->wte->weight.grad().scalar_type() == at::kFloat);
}

RANKS_TEST("one rank's infinity skips the step of all", "[fsdp]", 2) {
  at::set_num_threads(1);
  Fabric::Parts parts;
  parts.precision = std::make_shared<fabric::MixedPrecision>(at::kHalf, at::kCPU);
  auto config =
      settings(2, Tree::Map{{"mixed_precision", Tree::Map{{"param_dtype", "fp32"}, {"reduce_dtype", "fp32"}}}});
  config.precision.clear();
  Fabric fabric(config, parts);
  fabric.launch();
  auto [model, optimizer] = fabric.setup(torch::nn::Linear(4, 4), [](auto p) { return torch::optim::SGD(p, 0.1); });
  RANK_CHECK(model->weight.size(0) == 2);
  fabric.backward(model(torch::ones({2, 4})).sum());
  // In the part that rank 1 holds.
  if (rank == 1) model->weight.mutable_grad()[0][0] = std::numeric_limits<float>::infinity();
  optimizer.step();
  RANK_CHECK(fabric.precision()->step_was_skipped());
}
