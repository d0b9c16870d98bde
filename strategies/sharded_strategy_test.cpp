// That a strategy which shards parameters fits: one of the tests' own, registered by name, goes through everything that
// a loop does (tests/support/halved_strategy.h).
#include <fabric/fabric.h>

#include <torch/torch.h>

#include <filesystem>

#include "tests/support/halved_strategy.h"
#include "tests/support/ranks.h"

using fabric::Fabric;
using fabric::Value;

namespace {

// Odd numbers of rows, one row, no dimension, a tied and an unused parameter, a buffer.
struct TextImpl : torch::nn::Module {
  TextImpl() {
    wte = register_module("wte", torch::nn::Embedding(11, 5));
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({5})));
    up = register_module("up", torch::nn::Linear(5, 7));
    down = register_module("down", torch::nn::Linear(7, 5));
    lm_head = register_module("lm_head", torch::nn::Linear(torch::nn::LinearOptions(5, 11).bias(false)));
    single = register_parameter("single", torch::ones({1, 5}));
    scale = register_parameter("scale", torch::ones({}));
    unused = register_parameter("unused", torch::ones({3}));
    offset = register_buffer("offset", torch::zeros({5}));
  }
  at::Tensor forward(const at::Tensor& ids) {
    auto x = wte(ids) * single + offset;
    return lm_head(x + down(torch::tanh(up(norm(x)))) * scale);
  }
  torch::nn::Embedding wte{nullptr};
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear up{nullptr}, down{nullptr}, lm_head{nullptr};
  at::Tensor single, scale, unused, offset;
};
TORCH_MODULE(Text);

Text make_text() {
  torch::manual_seed(5);
  Text net;
  fabric::tie(net, "lm_head.weight", "wte.weight");
  return net;
}

at::Tensor batch(int step, int part, int rank, int world) {
  torch::manual_seed(100 * step + part);
  return torch::randint(0, 11, {8, 4}).slice(0, rank, 8, world).contiguous();
}
at::Tensor loss_of(const at::Tensor& logits, const at::Tensor& ids) {
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), ids.flatten());
}

// Steps `first` … `last` - 1 with accumulation and clipping; the norms before clipping.
template <class Model, class Optimizer, class Step>
void train(Model& model, Optimizer& optimizer, int first, int last, int rank, int world, const Step& step) {
  for (int i = first; i < last; ++i) {
    optimizer.zero_grad();
    for (int part = 0; part < 2; ++part) {
      auto ids = batch(i, part, rank, world);
      step(part, [&] { return loss_of(model(ids), ids) / 2; });
    }
  }
}

struct Whole {
  std::vector<at::Tensor> parameters;
  std::vector<double> norms;
};

Whole alone(int steps) {
  Fabric fabric({.accelerator = "cpu", .strategy = "single_device", .precision = "64-true"});
  auto raw = make_text();
  auto [model, optimizer] = fabric.setup(raw, [](auto parameters) { return torch::optim::AdamW(parameters, 0.05); });
  Whole out;
  train(model, optimizer, 0, steps, 0, 1, [&, &model = model, &optimizer = optimizer](int part, auto&& loss) {
    fabric.backward(loss());
    if (part == 0) return;
    out.norms.push_back(fabric.clip_gradients(model, optimizer, {.max_norm = 0.5}).template item<double>());
    optimizer.step();
  });
  for (auto& parameter : raw->parameters()) out.parameters.push_back(parameter.detach().clone());
  return out;
}

struct Job {
  Job() : fabric(settings()), raw(make_text()) { fabric.launch(); }
  static Fabric::Config settings() {
    halved::register_strategy();
    return {.accelerator = "cpu", .strategy = "halved", .devices = 2, .precision = "64-true"};
  }
  Fabric fabric;
  Text raw;
};

template <class Model, class Optimizer>
std::vector<double> train_over_ranks(Fabric& fabric, Model& model, Optimizer& optimizer, int first, int last,
                                     bool accumulate_locally) {
  std::vector<double> norms;
  train(model, optimizer, first, last, fabric.global_rank(), fabric.world_size(), [&](int part, auto&& loss) {
    {
      auto local = fabric.no_backward_sync(model, accumulate_locally && part == 0);
      fabric.backward(loss());
    }
    if (part == 0) return;
    norms.push_back(fabric.clip_gradients(model, optimizer, {.max_norm = 0.5}).template item<double>());
    optimizer.step();
  });
  return norms;
}

template <class Model>
halved::Module& split_of(const Model& model) {
  return static_cast<halved::Module&>(model.strategy_module());
}

// Whole parameters of the model against those of one process.
template <class Model>
void check_equal(const Model& model, const Whole& expected) {
  auto parameters = model->parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i)
    RANK_CHECK(torch::allclose(split_of(model).whole(parameters[i]), expected.parameters[i], 1e-10, 1e-12));
}

auto adamw = [](auto parameters) { return torch::optim::AdamW(parameters, 0.05); };

std::filesystem::path shared_path(const Fabric& fabric, const char* name) {
  auto number = std::to_string(fabric.broadcast(Value(getpid())).as_int());
  return std::filesystem::temp_directory_path() / (std::string("fabric_sharded_") + name + number + ".safetensors");
}

}  // namespace

RANKS_TEST("a sharded strategy of a user's own trains as one process does", "[sharded]", 2) {
  at::set_num_threads(1);
  auto expected = alone(5);
  for (bool accumulate_locally : {false, true}) {
    for (bool made_before : {false, true}) {
      Job job;
      Fabric& fabric = job.fabric;
      auto before = std::make_shared<torch::optim::AdamW>(job.raw->parameters(), 0.05);
      auto check = [&](auto&& setup) {
        auto& [model, optimizer] = setup;
        std::int64_t held = 0, all = 0;
        for (const auto& parameter : job.raw->parameters()) {
          held += parameter.numel();
          all += split_of(model).whole(parameter).numel();
        }
        RANK_CHECK(held < 0.62 * static_cast<double>(all));
        auto norms = train_over_ranks(fabric, model, optimizer, 0, 5, accumulate_locally);
        for (std::size_t i = 0; i < norms.size(); ++i)
          RANK_CHECK(std::abs(norms[i] - expected.norms[i]) < 1e-10 * expected.norms[i]);
        check_equal(model, expected);
        RANK_CHECK(!split_of(model).anything_gathered());
        // Evaluation leaves nothing over, nor does an exception in the middle.
        torch::NoGradGuard no_grad;
        model(torch::zeros({1, 2}, torch::kLong));
        RANK_CHECK(!split_of(model).anything_gathered());
        bool thrown = false;
        try {
          model.call([](TextImpl& net, const at::Tensor& ids) { return net.wte(ids).mm(ids); },
                     torch::zeros({1, 2}, torch::kLong));
        } catch (const c10::Error&) {
          thrown = true;
        }
        RANK_CHECK(thrown && !split_of(model).anything_gathered());
      };
      if (made_before)
        check(fabric.setup(job.raw, before));
      else
        check(fabric.setup(job.raw, adamw));
    }
  }
}

RANKS_TEST("a sharded model is saved in parts and goes on from them", "[sharded]", 2) {
  at::set_num_threads(1);
  auto expected = alone(6);
  std::filesystem::path path;
  {
    Job job;
    path = shared_path(job.fabric, "resume");
    auto [model, optimizer] = job.fabric.setup(job.raw, adamw);
    train_over_ranks(job.fabric, model, optimizer, 0, 3, false);
    job.fabric.save(path, {{"model", model}, {"optimizer", optimizer}, {"step", 3}});
    job.fabric.barrier();
  }
  // Elsewhere the file is one of a whole model.
  if (rank == 0) {
    Fabric single({.accelerator = "cpu", .strategy = "single_device", .precision = "64-true"});
    auto raw = make_text();
    auto [model, optimizer] = single.setup(raw, adamw);
    fabric::State state{{"model", model}, {"optimizer", optimizer}, {"step", 0}};
    single.load(path, state);
    auto three = alone(3);
    for (std::size_t i = 0; i < three.parameters.size(); ++i)
      RANK_CHECK(torch::allclose(raw->parameters()[i], three.parameters[i], 1e-10, 1e-12));
  }
  Job job;
  torch::nn::init::zeros_(job.raw->down->weight);
  auto [model, optimizer] = job.fabric.setup(job.raw, adamw);
  fabric::State state{{"model", model}, {"optimizer", optimizer}, {"step", 0}};
  job.fabric.load(path, state);
  RANK_CHECK(state.at("step").value()->as_int() == 3);
  train_over_ranks(job.fabric, model, optimizer, 3, 6, false);
  check_equal(model, expected);
  // One that does not fit is refused everywhere, and changes nothing.
  struct OtherImpl : torch::nn::Module {
    OtherImpl() { register_module("wte", torch::nn::Embedding(12, 5)); }
  };
  auto other = std::make_shared<OtherImpl>();
  fabric::State misfit{{"model", other}};
  bool refused = false;
  try {
    job.fabric.load(path, misfit);
  } catch (const fabric::CheckpointError&) {
    refused = true;
  }
  RANK_CHECK(refused);
  job.fabric.barrier();
  if (rank == 0) std::filesystem::remove_all(path);
}

RANKS_TEST("a sharded strategy builds a module without storage and fills it layer by layer", "[sharded]", 2) {
  at::set_num_threads(1);
  halved::register_strategy();
  Fabric fabric({.accelerator = "cpu", .strategy = "halved", .devices = 2});
  fabric.launch();
  std::shared_ptr<torch::nn::LinearImpl> raw;
  {
    auto on_meta = fabric.init_module(/*empty_init=*/true);
    raw = std::make_shared<torch::nn::LinearImpl>(6, 9);
  }
  RANK_CHECK(raw->weight.is_meta() && raw->bias.is_meta());
  auto [model, optimizer] = fabric.setup(raw, [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
  RANK_CHECK(!raw->weight.is_meta() && raw->weight.size(0) == (rank == 0 ? 5 : 4));
  RANK_CHECK(raw->weight.requires_grad() && raw->weight.is_leaf());
  auto before = split_of(model).whole(raw->weight);
  RANK_CHECK(before.abs().sum().item<double>() > 0);
  fabric.backward(model(torch::ones({2, 6})).square().sum());
  optimizer.step();
  RANK_CHECK(!torch::equal(split_of(model).whole(raw->weight), before));
  // The same module under a strategy that needs it whole.
  std::shared_ptr<torch::nn::LinearImpl> other;
  {
    auto on_meta = fabric.init_module(/*empty_init=*/true);
    other = std::make_shared<torch::nn::LinearImpl>(6, 9);
  }
  Fabric single({.accelerator = "cpu", .strategy = "single_device"});
  std::string text;
  try {
    single.setup(other);
  } catch (const fabric::MisuseError& error) {
    text = error.what();
  }
  RANK_CHECK(text.find("'weight' is on the meta device") != std::string::npos);
}

RANKS_TEST("a sharded strategy refuses a backward pass that goes around it", "[sharded]", 2) {
  at::set_num_threads(1);
  Job job;
  auto model = job.fabric.setup(job.raw);
  bool refused = false;
  try {
    auto ids = torch::zeros({1, 2}, torch::kLong);
    loss_of(model(ids), ids).backward();
  } catch (const fabric::MisuseError&) {
    refused = true;
  }
  RANK_CHECK(refused);
}
