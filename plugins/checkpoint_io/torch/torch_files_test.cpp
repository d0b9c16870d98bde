#include <torch/torch.h>

#include <cmath>
#include <cstdlib>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/state/state.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace fabric;
using Catch::Matchers::Contains;
using checkpoint_test::fixture;
using checkpoint_test::Folder;
using checkpoint_test::same;

namespace {

Value load(const std::filesystem::path& path) { return make_checkpoint_io()->load(path); }
torch::Tensor tensor(const Value& value, const char* key) { return value.at(key).as<torch::Tensor>(); }

struct Net : torch::nn::SequentialImpl {
  Net() {
    push_back(torch::nn::Linear(3, 4));
    push_back(torch::nn::BatchNorm1d(4));
    push_back(torch::nn::Tanh());
    push_back(torch::nn::Linear(4, 1));
  }
};

}  // namespace

TEST_CASE("values that Python saved come back", "[checkpoint_io][torch]") {
  for (const char* name : {"values.pt", "values_protocol4.pt"}) {
    INFO(name);
    Value v = load(fixture(name));
    CHECK(v.at("types").as_map().size() == 17);
    for (const auto& [type, item] : v.at("types").as_map()) {
      INFO(type);
      auto numbers = item.as<torch::Tensor>();
      CHECK(torch::equal(numbers.to(torch::kComplexDouble), torch::tensor({0, 1, 1, 0}).to(torch::kComplexDouble)));
    }
    CHECK(tensor(v.at("types"), "bfloat16").scalar_type() == torch::kBFloat16);
    CHECK(tensor(v.at("types"), "uint16").scalar_type() == torch::kUInt16);
    CHECK(tensor(v.at("types"), "float8_e4m3fn").scalar_type() == torch::kFloat8_e4m3fn);
    auto base = torch::arange(24, torch::kFloat).reshape({2, 3, 4});
    CHECK(torch::equal(tensor(v, "transposed"), base.transpose(0, 2)));
    CHECK(torch::equal(tensor(v, "slice"), base.select(0, 1).slice(1, 0, 4, 2)));
    CHECK(torch::equal(tensor(v, "expanded"), torch::full({3}, 5.0f)));
    CHECK(torch::equal(tensor(v, "scalar"), torch::tensor(2.5f)));
    CHECK(tensor(v, "empty").sizes() == torch::IntArrayRef({0, 3}));
    CHECK(torch::equal(tensor(v, "parameter"), torch::full({2}, 7.0f)));
    const auto& tied = v.at("tied").as_list();
    CHECK(tied[0].as<torch::Tensor>().data_ptr() == tied[1].as<torch::Tensor>().data_ptr());
    CHECK(same(v.at("ordered"), Value::Map{{"b", 1}, {"a", -2}}));
    CHECK(same(v.at("counter"), Value::Map{{"3", 1}}));
    CHECK(same(v.at("numbers"), Value::List{0, 255, 256, 65536, -1, 2147483648, -2147483649, INT64_MAX, INT64_MIN, 0.1,
                                            -0.0, INFINITY, std::nan("")}));
    CHECK(same(v.at("words"), Value::List{"", "text", "é 漢 😀"}));
    CHECK(v.at("nothing").is_null());
    CHECK(same(v.at("flags"), Value::List{true, false}));
    CHECK(same(v.at("size"), Value::List{2, 3}));
    CHECK(v.at("device").as_string() == "cpu");
    CHECK(v.at("dtype").as_string() == "torch.float16");
    CHECK(v.at("bytes").as_string() == std::string("\x00\xff", 2));
    CHECK(v.at("0").as_string() == "zero");
    CHECK(v.at("-1").as_string() == "minus one");
  }
}

TEST_CASE("a training run begun in Python goes on here with the same losses", "[checkpoint_io][torch][parity]") {
  auto net = std::make_shared<Net>();
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(9.0));
  State state{{"model", *net}, {"optimizer", optimizer}};
  restore_state(state, load(fixture("training.pt")), StateAccess::plain());
  auto x = torch::linspace(-1, 1, 24).reshape({8, 3}), y = x.sum(1, true).sin();
  auto expected = tensor(load(fixture("losses_after.safetensors")), "losses");
  for (int i = 0; i < expected.size(0); ++i) {
    optimizer.zero_grad();
    auto loss = torch::mse_loss(net->forward(x), y);
    loss.backward();
    optimizer.step();
    CHECK(loss.item<double>() == Approx(expected[i].item<double>()).epsilon(1e-6));
  }
}

TEST_CASE("a safetensors file of Python's is a flat map that loads into a module", "[checkpoint_io][parity]") {
  Value flat = load(fixture("model.safetensors"));
  CHECK(flat.as_map().size() == 9);
  Net net;
  CHECK_NOTHROW(load_module_state_dict(net, flat));
  // What Python printed, and what it saved of the same model in its own format.
  CHECK(torch::equal(tensor(flat, "3.bias"), torch::tensor({-0.046080414205789566f})));
  CHECK(torch::equal(tensor(flat, "3.weight"), torch::tensor({{0.012993057258427143f, 0.062481801956892014f,
                                                               0.5724233388900757f, 0.2913707494735718f}})));
  CHECK(tensor(flat, "1.num_batches_tracked").item<std::int64_t>() == 3);
  const Value saved = load(fixture("training.pt")).at("model");
  REQUIRE(saved.as_map().size() == 9);
  for (const auto& [name, value] : saved.as_map()) {
    INFO(name);
    REQUIRE(flat.find(name));
    CHECK(same(flat.at(name), value));
    auto parameters = net.named_parameters(), buffers = net.named_buffers();
    auto* mine = parameters.find(name) ? parameters.find(name) : buffers.find(name);
    REQUIRE(mine);
    CHECK(torch::equal(*mine, value.as<torch::Tensor>()));
  }
}

TEST_CASE("files that only running code could rebuild are refused by name", "[checkpoint_io][torch]") {
  CHECK_THROWS_WITH(load(fixture("runs_code.pt")), Contains("system") && Contains("runs_code.pt"));
  CHECK_THROWS_AS(load(fixture("runs_code.pt")), CheckpointError);
  CHECK_THROWS_WITH(load(fixture("torchscript.pt")), Contains("TorchScript"));
}

TEST_CASE("the torch format holds what the default one holds", "[checkpoint_io][torch]") {
  Folder folder;
  auto base = torch::arange(6, torch::kFloat);
  Value value = Value::Map{{"tensors", Value::List{base.view({2, 3}).t(), torch::empty({0, 2}), torch::tensor(3),
                                                   torch::ones(2, torch::kBFloat16)}},
                           {"numbers", Value::List{1, INT64_MIN, INT64_MAX, 0.1, std::nan(""), -0.0}},
                           {"words", Value::List{"é 漢 😀", std::string("\xff\x00", 2), ""}},
                           {"none", Value()},
                           {"flags", Value::List{true, false}},
                           {"empty", Value::List{Value::Map{}, Value::List{}}},
                           {"complex", torch::complex(base, base)},
                           {"float8", torch::ones(3).to(torch::kFloat8_e5m2)}};
  auto io = make_checkpoint_io("torch");
  CHECK(io->name() == "torch");
  io->save(value, folder / "f.pt");
  CHECK(same(io->load(folder / "f.pt"), value));
  CHECK(same(load(folder / "f.pt"), value));
  Value deep = 1;
  for (int i = 0; i < 300; ++i) deep = Value::List{deep};
  CHECK_THROWS_AS(io->save(deep, folder / "deep"), CheckpointError);
}

TEST_CASE("an archive of very many entries is read back", "[checkpoint_io][torch]") {
  Folder folder;
  Value::List many;
  for (int i = 0; i < 70000; ++i)
    many.push_back(torch::scalar_tensor(i, torch::kInt));  // more than a zip's short count
  make_checkpoint_io("torch")->save(many, folder / "f.pt");
  Value back = load(folder / "f.pt");
  CHECK(back.as_list().size() == many.size());
  CHECK(back.as_list().back().as<torch::Tensor>().item<int>() == 69999);
}

TEST_CASE("Python reads what is written here", "[checkpoint_io][torch][parity]") {
  const char* python = std::getenv("FABRIC_PEER_PYTHON");
  if (!python) {
    WARN("skipped: set FABRIC_PEER_PYTHON to a Python with torch and safetensors to run it");
    return;
  }
  Folder folder;
  auto weight = torch::arange(6, torch::kFloat).reshape({2, 3});
  make_checkpoint_io()->save(
      Value::Map{{"model", Value::Map{{"weight", weight}, {"half", torch::ones(3, torch::kBFloat16)}}},
                 {"epoch", 3},
                 {"rate", 0.1}},
      folder / "f.safetensors");

  torch::nn::Linear net(3, 2);
  torch::optim::AdamW optimizer(net->parameters(), torch::optim::AdamWOptions(0.25));
  for (int i = 0; i < 2; ++i) {
    optimizer.zero_grad();
    net->forward(torch::ones({1, 3})).sum().backward();
    optimizer.step();
  }
  Value::Map types;
  for (auto [name, type] :
       std::initializer_list<std::pair<const char*, torch::ScalarType>>{{"float64", torch::kDouble},
                                                                        {"float16", torch::kHalf},
                                                                        {"bfloat16", torch::kBFloat16},
                                                                        {"int64", torch::kLong},
                                                                        {"int8", torch::kChar},
                                                                        {"uint8", torch::kByte},
                                                                        {"bool", torch::kBool},
                                                                        {"uint16", torch::kUInt16},
                                                                        {"float8_e4m3fn", torch::kFloat8_e4m3fn},
                                                                        {"float8_e5m2", torch::kFloat8_e5m2},
                                                                        {"complex64", torch::kComplexFloat}})
    types[name] = torch::tensor({0, 1, 1}).to(type);
  make_checkpoint_io("torch")->save(Value::Map{{"weight", weight.t()},
                                               {"tied", Value::List{weight, weight}},
                                               {"types", types},
                                               {"numbers", Value::List{1, INT64_MIN, INT64_MAX, 0.1, std::nan("")}},
                                               {"words", Value::List{"é 漢 😀", std::string("\xff\x00", 2)}},
                                               {"none", Value()},
                                               {"yes", true},
                                               {"empty", torch::empty({0, 3})},
                                               {"model", module_state_dict(*net)},
                                               {"optimizer", optimizer_state_dict(optimizer)}},
                                    folder / "f.pt");
  auto script = fixture("../check_checkpoints.py");
  CHECK(std::system((std::string(python) + " '" + script.string() + "' '" + (folder / "f.safetensors").string() +
                     "' '" + (folder / "f.pt").string() + "'")
                        .c_str()) == 0);
}
