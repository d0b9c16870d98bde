// Loads under other names and of some tensors, on one rank and on ranks that each hold a part.
#include <fabric/strategies/checkpointing.h>

#include <torch/torch.h>

#include <fabric/base/error.h>
#include <fabric/fabric.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"
#include "tests/support/failure_of.h"

using Catch::Matchers::Contains;
using checkpoint_test::Folder;
using fabric::Fabric;
using fabric::LoadOptions;
using fabric::State;
using fabric::Value;

namespace {

struct NetImpl : torch::nn::Module {
  NetImpl()
      : backbone(register_module("backbone", torch::nn::Linear(2, 2))),
        head(register_module("head", torch::nn::Linear(2, 1))) {}
  torch::nn::Linear backbone, head;
};
TORCH_MODULE(Net);

/// As a Python program called the layers.
Value::Map python_state() {
  return {{"encoder.weight", torch::full({2, 2}, 3.0)},
          {"encoder.bias", torch::full({2}, 4.0)},
          {"head.weight", torch::full({1, 2}, 5.0)},
          {"head.bias", torch::full({1}, 6.0)}};
}

double mean_of(const at::Tensor& tensor) { return tensor.mean().item<double>(); }

const fabric::RenameRules kRules{{"^encoder\\.(.*)", "backbone.$1"}};

}  // namespace

TEST_CASE("a bare state dict loads under other names", "[load_names]") {
  Folder folder;
  const auto path = folder / "python.safetensors";
  fabric::make_checkpoint_io()->save(python_state(), path);
  Fabric fabric({.accelerator = "cpu"});
  Net net;
  CHECK_THROWS_AS(fabric.load_raw(path, net), fabric::CheckpointKeyError);
  fabric.load_raw(path, net, {.rename = kRules});
  CHECK(mean_of(net->backbone->weight) == 3);
  CHECK(mean_of(net->head->bias) == 6);
}

TEST_CASE("a strict load tells every name, and what it was in the file", "[load_names]") {
  Folder folder;
  const auto path = folder / "python.safetensors";
  fabric::make_checkpoint_io()->save(python_state(), path);
  Fabric fabric({.accelerator = "cpu"});
  Net net;
  auto before = net->head->weight.clone();
  auto text = failure_of<fabric::CheckpointKeyError>([&] {
    fabric.load_raw(path, net, {.rename = {{"^encoder\\.", "body."}, {"head.w", "head.W"}}});
  });
  CHECK_THAT(text, Contains("missing 'backbone.weight'") && Contains("missing 'head.weight'"));
  CHECK_THAT(text, Contains("unexpected 'body.weight' ('encoder.weight' in the checkpoint)"));
  CHECK_THAT(text, Contains("unexpected 'body.bias' ('encoder.bias' in the checkpoint)"));
  CHECK_THAT(text, Contains("unexpected 'head.Weight' ('head.weight' in the checkpoint)"));
  CHECK(net->head->weight.equal(before));
  CHECK_THAT(failure_of<fabric::ConfigError>([&] {
               fabric.load_raw(path, net, {.rename = {{"(", ""}}});
             }),
             Contains("'('"));
  CHECK_THAT(failure_of<fabric::CheckpointKeyError>([&] {
               fabric.load_raw(path, net, {.rename = {{"^(encoder|head)\\.", "backbone."}}});
             }),
             Contains("'encoder.weight'") && Contains("'head.weight'"));
}

TEST_CASE("entries of a checkpoint are renamed by their whole paths", "[load_names]") {
  Folder folder;
  const auto path = folder / "lightning.safetensors";
  fabric::make_checkpoint_io()->save(Value::Map{{"state_dict", python_state()}, {"epoch", 7}}, path);
  Fabric fabric({.accelerator = "cpu"});
  Net net;
  State state{{"model", net}, {"epoch", 0}};
  fabric.load(path, state, {.rename = {{"^state_dict\\.", "model."}, {"^model\\.encoder\\.", "model.backbone."}}});
  CHECK(mean_of(net->backbone->bias) == 4);
  CHECK(state.at("epoch").value()->as_int() == 7);
}

TEST_CASE("a filter leaves tensors alone, and a strict load does not miss them", "[load_names]") {
  Folder folder;
  const auto path = folder / "python.safetensors";
  auto saved = python_state();
  saved.erase("head.bias");
  saved.at("head.weight") = torch::zeros({7, 7});  // of another task
  fabric::make_checkpoint_io()->save(saved, path);
  Fabric fabric({.accelerator = "cpu"});
  Net net;
  auto head = net->head->weight.clone(), bias = net->head->bias.clone();
  LoadOptions options{.rename = kRules, .filter = [](const std::string& name) { return !name.starts_with("head."); }};
  fabric.load_raw(path, net, options);
  CHECK(mean_of(net->backbone->weight) == 3);
  CHECK(net->head->weight.equal(head));
  CHECK(net->head->bias.equal(bias));
  // What the filter lets through must be there.
  options.filter = [](const std::string& name) { return name != "head.weight"; };
  auto text = failure_of<fabric::CheckpointKeyError>([&] { fabric.load_raw(path, net, options); });
  CHECK_THAT(text, Contains("missing 'head.bias'") && !Contains("head.weight"));
}

TEST_CASE("a tensor that is spread over ranks is renamed and left alone as a whole one is", "[load_names]") {
  Folder folder;
  const auto path = folder / "whole.safetensors";
  const auto whole = torch::arange(14, torch::kFloat).reshape({7, 2});
  fabric::make_checkpoint_io()->save(Value::Map{{"old", Value::Map{{"w", whole}}}}, path);
  struct Part : torch::nn::Module {
    torch::Tensor weight = register_parameter("weight", torch::zeros({3, 2}));
  } part;
  const fabric::ShardOf shard_of = [](const at::Tensor&) { return std::optional(fabric::Shard{{7, 2}, {4, 0}}); };
  auto access = fabric::StateAccess::plain();
  access.get_module = [&](torch::nn::Module& module) {
    return fabric::StatePart{fabric::module_state_dict(module), fabric::module_shards(module, shard_of)};
  };
  access.set_module = [&](torch::nn::Module& module, const Value& state, bool strict) {
    fabric::load_module_state_dict(module, state, strict, shard_of);
  };
  access.check_module = [&](torch::nn::Module& module, const Value& state) {
    fabric::check_module_state_dict(module, state, shard_of);
  };
  const fabric::CheckpointContext context{fabric::ProcessGroup::single(), fabric::make_checkpoint_io(), access};
  State state{{"model", part}};
  LoadOptions options{.rename = {{"^old\\.w$", "model.weight"}}, .filter = [](const std::string&) { return false; }};
  fabric::load_state(context, path, &state, options);
  CHECK(part.weight.abs().sum().item<float>() == 0);
  options.filter = {};
  fabric::load_state(context, path, &state, options);
  CHECK(part.weight.equal(whole.slice(0, 4, 7)));
}
