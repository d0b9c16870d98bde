#include <fabric/state/tie.h>

#include <torch/torch.h>

#include <fabric/fabric.h>

#include "tests/support/catch.h"

using Catch::Contains;
using fabric::MisuseError;

namespace {

struct TextImpl : torch::nn::Module {
  TextImpl() {
    wte = register_module("wte", torch::nn::Embedding(10, 4));
    lm_head = register_module("lm_head", torch::nn::Linear(torch::nn::LinearOptions(4, 10).bias(false)));
    scale = register_parameter("scale", torch::ones({4}));
    shift = register_parameter("shift", torch::ones({4}));
  }
  at::Tensor forward(const at::Tensor& ids) { return lm_head(wte(ids) * scale + shift); }
  torch::nn::Embedding wte{nullptr};
  torch::nn::Linear lm_head{nullptr};
  at::Tensor scale, shift;
};
TORCH_MODULE(Text);

}  // namespace

TEST_CASE("tied parameters are one tensor in members and in the dictionary", "[tie]") {
  for (bool assigned_before : {false, true}) {
    Text net;
    if (assigned_before) net->lm_head->weight = net->wte->weight;
    CHECK(fabric::advice_to_tie(*net, "lm_head.weight").empty() != assigned_before);
    fabric::tie(net, "lm_head.weight", "wte.weight");
    CHECK(net->lm_head->weight.is_same(net->wte->weight));
    CHECK(net->named_parameters()["lm_head.weight"].is_same(net->wte->weight));
    CHECK(fabric::advice_to_tie(*net, "lm_head.weight").empty());
    CHECK_NOTHROW(fabric::tie(*net, "lm_head.weight", "wte.weight"));  // as it is already
    net->forward(torch::tensor({1})).sum().backward();
    CHECK(net->named_parameters()["lm_head.weight"].grad().abs().sum().item<double>() > 0);
  }
}

TEST_CASE("what cannot be tied says why, and stays", "[tie]") {
  Text net;
  CHECK_THROWS_WITH(fabric::tie(net, "lm_head.weigth", "wte.weight"), Contains("lm_head.weight"));
  CHECK_THROWS_WITH(fabric::tie(net, "lm_head.weight", "nowhere.weight"), Contains("no parameter 'nowhere.weight'"));
  CHECK_THROWS_WITH(fabric::tie(net, "scale", "wte.weight"), Contains("[4]") && Contains("[10, 4]"));
  // A member of the user's own class is not seen: it has to be assigned before.
  CHECK_THROWS_WITH(fabric::tie(net, "shift", "scale"), Contains("you assign first"));
  CHECK_FALSE(net->named_parameters()["shift"].is_same(net->scale));
  net->shift = net->scale;
  fabric::tie(net, "shift", "scale");
  CHECK(net->named_parameters()["shift"].is_same(net->scale));
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  CHECK_THROWS_WITH(fabric::tie(net, "lm_head.weight", "wte.weight"), Contains("optimizer"));
}

TEST_CASE("an optimizer steps a tied parameter once", "[tie]") {
  auto trained = [](bool tie, bool joint) {
    torch::manual_seed(3);
    Text net;
    if (tie)
      fabric::tie(net, "lm_head.weight", "wte.weight");
    else
      net->lm_head->weight = net->wte->weight;  // the parameter that is left behind gets no gradient
    fabric::Fabric fabric({.accelerator = "cpu", .strategy = "single_device"});
    auto adam = [](auto parameters) { return torch::optim::AdamW(parameters, 0.1); };
    auto step = [&](const auto& model, const auto& optimizer) {
      fabric.backward(model(torch::tensor({1, 2})).square().mean());
      optimizer.step();
      CHECK(optimizer.param_groups()[0].params().size() == (tie ? 3 : 4));
    };
    if (joint) {
      auto [model, optimizer] = fabric.setup(net, adam);
      step(model, optimizer);
    } else {
      auto model = fabric.setup(net);
      step(model, fabric.setup_optimizers(adam(net->parameters())));
    }
    return net->wte->weight.detach().clone();
  };
  for (bool joint : {true, false}) CHECK(torch::equal(trained(true, joint), trained(false, joint)));
}
