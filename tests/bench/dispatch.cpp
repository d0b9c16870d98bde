// What it costs that operators can be seen: nothing while nobody looks, and so much per operator when a client does.

#include <torch/torch.h>

#include <fabric/dispatch/measure_flops.h>
#include <fabric/dispatch/operator_hooks.h>

#include "tests/bench/bench.h"

namespace {

using fabric::dispatch::Activation;
using fabric::dispatch::Client;
using fabric::dispatch::Level;

struct Idle : Client {
  void operator_called(fabric::dispatch::OperatorCall& call) override {
    ++calls;
    call.proceed();
  }
  std::int64_t calls = 0;
};

}  // namespace

int main() {
  at::set_num_threads(1);
  torch::manual_seed(0);
  bench::header();
  torch::nn::Sequential net(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
  auto x = torch::randn({32, 32});
  auto step = [&] {
    net->zero_grad();
    net->forward(x).sum().backward();
  };
  constexpr int kCount = 500, kRounds = 15;
  auto in_instructions = [&] {
    return bench::instructions([&] {
      for (int i = 0; i < kCount; ++i) step();
    });
  };
  for (int i = 0; i < kCount; ++i) step();
  double before = 1e300, after = 1e300;
  auto instructions_before = in_instructions();
  for (int round = 0; round < kRounds; ++round) before = std::min(before, bench::time_us(step, kCount));
  fabric::measure_flops([] {});  // takes the key, for good
  { Activation once(Level::above_autograd, std::make_shared<Idle>()); }
  for (int round = 0; round < kRounds; ++round) after = std::min(after, bench::time_us(step, kCount));
  auto instructions_after = in_instructions();
  bench::row("MLP step, both keys taken, nobody looks / never taken", after, before, "us", 1.03);
  if (instructions_before)
    bench::row("the same, instructions", double(instructions_after) / kCount, double(instructions_before) / kCount, "",
               1.001);

  auto per_operator = [&](const char* what, Level level, int clients, double bar) {
    std::vector<std::shared_ptr<Idle>> idle;
    for (int i = 0; i < clients; ++i) idle.push_back(std::make_shared<Idle>());
    auto seen = [&] {
      std::vector<std::unique_ptr<Activation>> active;
      for (auto& client : idle) active.push_back(std::make_unique<Activation>(level, client));
      step();
      while (!active.empty()) active.pop_back();
    };
    seen();
    double operators = static_cast<double>(idle.front()->calls);
    auto pair = bench::compare(seen, step, kCount, kRounds);
    bench::figure(what, (pair.ours - pair.theirs) / operators, "us", bar);
  };
  per_operator("per operator, one client above autograd", Level::above_autograd, 1, 2);
  per_operator("per operator, one client below autograd", Level::below_autograd, 1, 2);
  per_operator("per operator, three clients below autograd", Level::below_autograd, 3, 2.5);
  auto flops = bench::compare([&] { fabric::measure_flops(step); }, step, kCount, kRounds);
  bench::row("MLP step measured by measure_flops / not", flops.ours, flops.theirs, "us", 3);
}
