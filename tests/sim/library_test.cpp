// Parts of the library on the simulated device: loaders, checkpoints, random states, recomputation, dp, the
// accelerator.
#include <fabric/data/dataloader.h>
#include <fabric/data/seed.h>
#include <fabric/dispatch/measure_flops.h>
#include <fabric/fabric.h>
#include <fabric/optim/clip.h>
#include <fabric/optim/fused.h>
#include <fabric/strategies/activation.h>
#include <fabric/strategies/dp.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "tests/sim/sim_test_support.h"
#include "tests/support/sim_device/parts.h"

using at::Tensor;

namespace {

fabric::Fabric::Config on_sim(int devices = 1, const std::string& strategy = "single_device") {
  return {.accelerator = "sim", .strategy = strategy, .devices = devices};
}

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  NetImpl() { reset(); }
  void reset() override {
    first = register_module("first", torch::nn::Linear(6, 8));
    norm = register_module("norm", torch::nn::BatchNorm1d(8));
    second = register_module("second", torch::nn::Linear(8, 3));
  }
  Tensor forward(const Tensor& x) { return second(torch::relu(norm(first(x)))); }
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Net);

const auto kNetAdamW = [](auto parameters) {
  return fabric::optim::AdamW(parameters, fabric::optim::AdamWOptions(1e-2));
};

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("fabric_sim_" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
};

struct Numbers {
  std::size_t size() const { return 40; }
  Tensor get(std::size_t index) const { return torch::full({6}, static_cast<float>(index)); }
};

bool same(const torch::nn::Module& a, const torch::nn::Module& b) {
  auto ours = a.parameters(), theirs = b.parameters();
  bool equal = ours.size() == theirs.size();
  for (std::size_t i = 0; equal && i < ours.size(); ++i)
    equal = at::equal(ours[i].detach().cpu(), theirs[i].detach().cpu());
  return equal;
}

}  // namespace

TEST_CASE("an accelerator of a program's own is one like the others", "[sim][accelerator]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto accelerator = fabric::make_accelerator("Sim");
  CHECK(accelerator->name() == "sim");
  CHECK(accelerator->auto_device_count() == sim::kDevices);
  CHECK(accelerator->parse_devices("1,") == std::vector<int>{1});
  CHECK(accelerator->parse_devices(-1).size() == sim::kDevices);
  CHECK_THROWS_WITH(accelerator->parse_devices(3), Catch::Contains("only 2 sim devices are there"));
  CHECK_THROWS_WITH(accelerator->setup_device(c10::kCPU),
                    Catch::Contains("accelerator sim was given the device 'cpu'"));
  accelerator->setup_device(sim::sim_device(1));
  CHECK(at::accelerator::getDeviceIndex() == 1);
  accelerator->setup_device(sim::sim_device(0));
  accelerator->manual_seed(4);
  auto drawn = torch::rand({5}, sim::on(1)).cpu();
  accelerator->manual_seed(4);
  CHECK(at::equal(torch::rand({5}, sim::on(1)).cpu(), drawn));

  accelerator->empty_cache();
  auto before = accelerator->memory_stats(sim::sim_device(0));
  accelerator->reset_peak_memory(sim::sim_device(0));
  constexpr std::int64_t kBytes = 8 << 20;
  { auto block = torch::empty({kBytes}, sim::on().dtype(at::kByte)); }
  auto after = accelerator->memory_stats(sim::sim_device(0));
  CHECK(after.peak_allocated_bytes >= before.allocated_bytes + kBytes);
  CHECK(after.allocated_bytes == before.allocated_bytes);
  CHECK(after.total_bytes == static_cast<std::int64_t>(sim::capacity()));
  accelerator->empty_cache();
  CHECK(accelerator->memory_stats(sim::sim_device(0)).reserved_bytes < after.reserved_bytes);

  // Work on a side stream comes after what was queued before, and what comes after it waits for it.
  auto a = torch::randn({50, 50}, sim::on());
  Tensor product;
  {
    auto scope = accelerator->side_stream(sim::sim_device(0));
    CHECK(sim::current_stream().id() != 0);
    product = a.matmul(a);
  }
  CHECK(sim::current_stream().id() == 0);
  CHECK(at::equal(product.sum().cpu(), a.matmul(a).sum().cpu()));

  // The host reads what is copied to it after it has waited for the device.
  auto host = torch::zeros({50, 50}).pin_memory();
  host.copy_(a, /*non_blocking=*/true);
  accelerator->synchronize(sim::sim_device(0));
  CHECK(std::isfinite(host.data_ptr<float>()[7]));
}

TEST_CASE("a module is moved with its buffers, and an optimizer's state follows", "[sim][setup]") {
  sim::CleanRun clean;
  sim::register_parts();
  fabric::Fabric fabric(on_sim());
  fabric.launch();
  CHECK(fabric.device().str() == "sim:0");
  Net net;
  torch::optim::AdamW early(net->parameters(), 1e-2);
  auto [model, optimizer] = fabric.setup(net, early);
  for (const auto& tensor : net->parameters()) CHECK(tensor.device().str() == "sim:0");
  for (const auto& tensor : net->buffers()) CHECK(tensor.device().str() == "sim:0");
  auto x = fabric.to_device(torch::randn({4, 6}));
  for (int step = 0; step < 2; ++step) {
    optimizer.zero_grad();
    fabric.backward(model(x).sum());
    optimizer.step();
  }
  for (const auto& [key, state] : early.state())
    CHECK(static_cast<torch::optim::AdamWParamState&>(*state).exp_avg().device().str() == "sim:0");
  auto line = fabric.describe();
  CHECK_THAT(line, Catch::Contains("sim"));
  fabric.shutdown();
}

TEST_CASE("batches reach the device from pinned memory, ahead of their use", "[sim][data]") {
  sim::CleanRun clean;
  sim::register_parts();
  fabric::Fabric fabric(on_sim());
  fabric.launch();
  for (int workers : {0, 2}) {
    auto batches = fabric.setup_dataloader(Numbers{}, {.batch_size = 8, .workers = workers, .pin_memory = true});
    sim::Count count;
    std::vector<Tensor> sums;
    for (const auto& batch : batches) {
      CHECK(batch.device().str() == "sim:0");
      sums.push_back(batch.sum());
    }
    CHECK(count.blocking_copies() == 0);
    CHECK(count.host_waits() == 0);
    float total = 0;
    for (const auto& sum : sums) total += sum.item<float>();
    CHECK(total == 6 * 780);
    // Whoever moves them.
    auto kept = fabric.setup_dataloader(
        Numbers{}, {.batch_size = 8, .workers = workers, .pin_memory = true, .move_to_device = false});
    count = sim::Count();
    for (const auto& batch : kept) {
      CHECK((batch.is_cpu() && batch.is_pinned()));
      batch.to(fabric.device(), /*non_blocking=*/true);
    }
    CHECK(count.blocking_copies() == 0);
  }
  fabric.shutdown();
}

TEST_CASE("what comes to the host has arrived", "[sim][data]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto there = [] { return torch::ones({4, 1000}, sim::on()) * 2; };
  auto total = [](const Tensor& tensor) {
    return std::accumulate(tensor.data_ptr<float>(), tensor.data_ptr<float>() + tensor.numel(), 0.0f);
  };
  // By LibTorch's own rule such a copy ends in pinned memory, some time.
  CHECK(there().to(c10::kCPU, /*non_blocking=*/true).is_pinned());
  at::accelerator::synchronizeDevice(0);
  CHECK(total(fabric::move_data_to_device(there(), c10::kCPU)) == 8000);

  fabric::Fabric fabric({.accelerator = "cpu"});
  fabric.launch();
  CHECK(total(fabric.to_device(there())) == 8000);
  fabric.shutdown();

  struct OnDevice {
    std::size_t size() const { return 4; }
    Tensor get(std::size_t) const { return torch::ones({1000}, sim::on()); }
  };
  auto loader =
      fabric::make_dataloader(OnDevice{}, {.batch_size = 2}, fabric::LoaderContext{.device = c10::Device(c10::kCPU)});
  for (const auto& batch : loader) CHECK(total(batch) == 2000);

  // Replicas on the CPU, as the tests have them.
  fabric::Fabric replicas(
      {}, {.strategy = std::make_shared<fabric::DataParallelStrategy>(std::vector<c10::Device>{c10::kCPU, c10::kCPU})});
  replicas.launch();
  struct SumImpl : torch::nn::Cloneable<SumImpl> {
    void reset() override {}
    Tensor forward(const Tensor& x) {
      return torch::full({1}, std::accumulate(x.data_ptr<float>(), x.data_ptr<float>() + x.numel(), 0.0f));
    }
  };
  TORCH_MODULE(Sum);
  auto model = replicas.setup(Sum());
  CHECK(model(there()).sum().item<float>() == 8000);
  replicas.shutdown();
}

TEST_CASE("checkpoints are read from the device by copies alone", "[sim][checkpoint]") {
  sim::CleanRun clean;
  sim::register_parts();
  Folder folder;
  fabric::Fabric fabric(on_sim());
  fabric.launch();
  auto [model, optimizer] = fabric.setup(Net(), kNetAdamW);
  auto [other, other_optimizer] = fabric.setup(Net(), kNetAdamW);
  auto x = fabric.to_device(torch::randn({8, 6}));
  auto step = [&](auto& net, auto& steps) {
    steps.zero_grad();
    fabric.backward(net(x).square().mean());
    steps.step();
  };
  for (int i = 0; i < 3; ++i) step(model, optimizer);
  for (const char* name : {"plain.safetensors", "async.safetensors"}) {
    INFO(name);
    auto path = folder.path / name;
    bool async = std::string(name) == "async.safetensors";
    fabric::State saved{{"model", model}, {"optimizer", optimizer}};
    sim::Count count;
    auto saving = fabric.save(path, saved, fabric::SaveOptions{.async = async});
    // All copies of a save beside the training are waited for at once.
    if (async) CHECK(count.host_waits() == 1);
    auto kept = Net();
    {
      torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < kept->parameters().size(); ++i)
        kept->parameters()[i].copy_(model->parameters()[i].cpu());
    }
    // While it is written, training goes on.
    if (async) step(model, optimizer);
    saving->wait();
    fabric::State state{{"model", other}, {"optimizer", other_optimizer}};
    fabric.load(path, state);
    for (const auto& parameter : other->parameters()) CHECK(parameter.device().str() == "sim:0");
    CHECK(same(*kept, *other));
    if (!async) {
      step(model, optimizer);
      step(other, other_optimizer);
      CHECK(same(*model, *other));
    }
  }
  fabric.shutdown();
}

TEST_CASE("random states are those of each device", "[sim][seed]") {
  sim::CleanRun clean;
  sim::register_parts();
  torch::manual_seed(5);
  torch::rand({3}, sim::on(1));
  auto state = fabric::rng_state();
  REQUIRE(state.find("sim"));
  CHECK(state.at("sim").as_list().size() == sim::kDevices);
  auto draw = [] {
    return at::cat({torch::rand({4}), torch::rand({4}, sim::on(0)).cpu(), torch::rand({4}, sim::on(1)).cpu()});
  };
  auto first = draw();
  CHECK_FALSE(at::equal(draw(), first));
  fabric::set_rng_state(state);
  CHECK(at::equal(draw(), first));
  // A state from a machine without such devices sets what it has.
  fabric::Value alone = fabric::Value::Map{{"cpu", state.at("cpu")}};
  fabric::set_rng_state(alone);
  CHECK(at::equal(torch::rand({4}), first.slice(0, 0, 4)));
}

TEST_CASE("a region that is run again draws the device's random numbers again", "[sim][activation]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto gradient_of = [](bool checkpointed) {
    torch::manual_seed(8);
    auto weight = torch::ones({64}, sim::on()).requires_grad_();
    auto region = [](const Tensor& x) { return torch::dropout(x * 2, 0.5, true).sin(); };
    auto out = checkpointed ? fabric::checkpoint(region, weight) : region(weight);
    torch::rand({7}, sim::on());
    out.sum().backward();
    return weight.grad().cpu();
  };
  // After a backward pass without any region: LibTorch's engine has started its threads then.
  auto plain = gradient_of(false);
  CHECK(at::equal(gradient_of(true), plain));
}

TEST_CASE("a region on both devices and on a side stream draws the same again", "[sim][activation]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto accelerator = fabric::make_accelerator("sim");
  auto gradients_of = [&](bool checkpointed) {
    torch::manual_seed(8);
    auto here = torch::ones({64}, sim::on(0)).requires_grad_(), there = torch::ones({64}, sim::on(1)).requires_grad_();
    auto region = [](const Tensor& a, const Tensor& b) {
      auto noise = torch::dropout(b * 3, 0.5, true).sin();
      return torch::dropout(a * 2, 0.5, true).sin() + noise.to(a.device());
    };
    Tensor loss;
    {
      auto side = accelerator->side_stream(sim::sim_device(0));
      loss = (checkpointed ? fabric::checkpoint(region, here, there) : region(here, there)).sum();
    }
    torch::rand({7}, sim::on(0));
    torch::rand({7}, sim::on(1));
    loss.backward();
    return at::cat({here.grad().cpu(), there.grad().cpu()});
  };
  auto plain = gradients_of(false);
  CHECK(at::equal(gradients_of(true), plain));
}

TEST_CASE("fused steps are taken where the device has them", "[sim][optim]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto steps_of = [](auto device) {
    torch::manual_seed(2);
    auto weight = torch::randn({30}).to(device).requires_grad_();
    fabric::optim::AdamW optimizer({weight}, fabric::optim::AdamWOptions(1e-2));
    std::uint64_t kernels = 0;
    for (int i = 0; i < 3; ++i) {
      weight.mutable_grad() = torch::full({30}, 0.1 * (i + 1)).to(device);
      sim::Count count;
      optimizer.step();
      kernels = count.kernels();
    }
    return std::pair(weight.detach().cpu(), kernels);
  };
  auto [ours, kernels] = steps_of("sim");
  CHECK(at::equal(ours, steps_of("cpu").first));
  CHECK(kernels == 2);  // the count of steps, and the step
}

TEST_CASE("what the fused kernels cannot do is stepped otherwise, on the device, too", "[sim][optim]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto steps_of = [](auto device) {
    torch::manual_seed(2);
    auto weight = torch::randn({30}, at::kComplexFloat).to(device).requires_grad_();
    fabric::optim::AdamW optimizer({weight}, fabric::optim::AdamWOptions(1e-2));
    std::uint64_t waits = 0;
    for (int i = 0; i < 3; ++i) {
      weight.mutable_grad() = torch::full({30}, 0.1 * (i + 1), at::kComplexFloat).to(device);
      sim::Count count;
      optimizer.step();
      waits += count.host_waits();
    }
    CHECK(waits == 0);
    return weight.detach().cpu();
  };
  CHECK(at::equal(steps_of("sim"), steps_of("cpu")));
}

TEST_CASE("dp splits a batch over two devices", "[sim][dp]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto train = [](fabric::Fabric::Config config) {
    torch::manual_seed(6);
    fabric::Fabric fabric(config);
    fabric.launch();
    torch::nn::Sequential net(torch::nn::Linear(6, 8), torch::nn::Tanh(), torch::nn::Linear(8, 3));
    auto [model, optimizer] =
        fabric.setup(net, [](auto parameters) { return torch::optim::SGD(parameters, torch::optim::SGDOptions(0.1)); });
    auto x = fabric.to_device(torch::randn({8, 6})), y = fabric.to_device(torch::randn({8, 3}));
    Tensor loss;
    for (int step = 0; step < 10; ++step) {
      optimizer.zero_grad();
      loss = torch::mse_loss(model(x), y.to(fabric.device()));
      fabric.backward(loss);
      optimizer.step();
    }
    auto parameters = torch::nn::utils::parameters_to_vector(net->parameters()).detach().cpu();
    fabric.shutdown();
    return parameters;
  };
  CHECK(at::allclose(train(on_sim(2, "dp")), train({.accelerator = "cpu"}), 1e-5, 1e-6));
}

TEST_CASE("dp's threads go on on the streams of the thread that called", "[sim][dp]") {
  sim::CleanRun clean;
  sim::register_parts();
  fabric::Fabric fabric(on_sim(2, "dp"));
  fabric.launch();
  auto model = fabric.setup(Net());
  auto x = torch::randn({8, 6});
  Tensor out;
  {
    auto accelerator = fabric.accelerator();
    auto first = accelerator->side_stream(sim::sim_device(0)), second = accelerator->side_stream(sim::sim_device(1));
    out = model(x);
    // The weights' memory is older than the streams, and outlives them.
    at::accelerator::synchronizeDevice(0);
    at::accelerator::synchronizeDevice(1);
  }
  CHECK(out.size(0) == 8);
  fabric.shutdown();
}

TEST_CASE("operations are counted on the device as on the CPU", "[sim][dispatch]") {
  sim::CleanRun clean;
  sim::register_parts();
  auto count = [](c10::Device device) {
    torch::nn::Sequential net(torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 4, 3)), torch::nn::Flatten(),
                              torch::nn::Linear(64, 5));
    net->to(device);
    auto x = torch::ones({2, 1, 6, 6}).to(device), q = torch::ones({1, 2, 8, 16}).to(device).requires_grad_();
    return fabric::measure_flops(
        [&] { return net->forward(x).sum() + at::scaled_dot_product_attention(q, q, q, {}, 0.0, true).sum(); },
        [](const Tensor& sum) { return sum; });
  };
  CHECK(count(sim::sim_device(0)) > 10000);
  CHECK(count(sim::sim_device(1)) == count(c10::kCPU));
}

TEST_CASE("errors name the device", "[sim][errors]") {
  sim::CleanRun clean;
  sim::register_parts();
  fabric::Fabric fabric(on_sim());
  fabric.launch();
  auto model = fabric.setup(Net());
  CHECK_THROWS_WITH(model(torch::ones({2, 6})), Catch::Contains("sim:0") && Catch::Contains("cpu"));
  CHECK_THROWS_AS(fabric::Fabric(fabric::Fabric::Config{.accelerator = "simm"}), fabric::ConfigError);
  fabric.shutdown();
  auto replicas = std::make_shared<fabric::DataParallelStrategy>(std::vector<c10::Device>{sim::sim_device(1)});
  CHECK_THROWS_WITH(fabric::Fabric({.accelerator = "cpu"}, {.strategy = replicas}), Catch::Contains("sim:1"));
  // A region that gives a tensor of another device when it runs again.
  int runs = 0;
  auto weight = torch::ones({4}, sim::on(0)).requires_grad_();
  auto moves = [&](const Tensor& x) { return x.to(sim::sim_device(runs++ > 0 ? 1 : 0)).mul(2).sin(); };
  auto out = fabric::checkpoint(moves, weight);
  CHECK_THROWS_WITH(out.sum().backward(), Catch::Contains("sim:1") && Catch::Contains("sim:0"));
}
