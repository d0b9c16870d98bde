// Small programs with known answers: whether the checker finds each error, and nothing where there is none. Every
// program exists twice, with and without the wait that it needs; the numbers are right in both.
#include <ATen/core/grad_mode.h>
#include <c10/core/StreamGuard.h>

#include <cstring>
#include <functional>
#include <thread>

#include "tests/sim/sim_test_support.h"

using at::Tensor;
using sim::make_event;
using sim::order_after;

namespace {

c10::Stream stream(int number, int device = 0) { return sim::make_stream(device, number); }
constexpr std::int64_t kLength = 1000;
const float kOnes = kLength;

Tensor ones(int device = 0) { return at::ones({kLength}, sim::on(device)); }
Tensor pinned(float value) { return at::full({kLength}, value).pin_memory(); }
// Read without any order, as only a test may.
float first_number(const Tensor& tensor) {
  float number = 0;
  std::memcpy(&number, sim::block_of(tensor)->bytes, sizeof number);
  return number;
}

struct Program {
  const char* what;
  const char* finding;  // a part of what has to be found
  std::function<void(bool wrong)> run;
};

void producer_and_consumer(bool wrong) {
  auto x = ones();
  if (!wrong) order_after(stream(1), stream(0));
  c10::StreamGuard on_other(stream(1));
  auto y = x * 2;
  CHECK(first_number(y) == 2);
  y.record_stream(stream(0));
  x.record_stream(stream(1));
}

void event_recorded_too_early(bool wrong) {
  auto x = at::zeros({kLength}, sim::on());
  auto event = make_event();
  if (wrong) event.record(stream(0));
  x.add_(1);
  if (!wrong) event.record(stream(0));
  event.block(stream(1));
  c10::StreamGuard on_other(stream(1));
  CHECK(x.sum().item<float>() == kOnes);
  x.record_stream(stream(1));
}

void event_of_another_stream(bool wrong) {
  auto x = ones();
  auto event = make_event();
  event.record(wrong ? stream(2) : stream(0));
  event.block(stream(1));
  c10::StreamGuard on_other(stream(1));
  auto y = x + 1;
  CHECK(first_number(y) == 2);
  x.record_stream(stream(1));
}

void waits_after_the_use(bool wrong) {
  auto x = ones();
  if (!wrong) order_after(stream(1), stream(0));
  Tensor y;
  {
    c10::StreamGuard on_other(stream(1));
    y = x + 1;
    x.record_stream(stream(1));
  }
  if (wrong) order_after(stream(1), stream(0));
  CHECK(first_number(y) == 2);
}

void write_while_read(bool wrong) {
  auto x = ones();
  order_after(stream(1), stream(0));
  Tensor sum;
  {
    c10::StreamGuard on_other(stream(1));
    sum = x.sum();
    x.record_stream(stream(1));
  }
  if (!wrong) order_after(stream(0), stream(1));
  x.zero_();
  CHECK(first_number(sum) == kOnes);
}

// Three streams in a chain: the last need not wait for the first itself.
void chain_of_waits(bool wrong) {
  auto x = ones();
  Tensor y;
  order_after(stream(1), stream(0));
  if (!wrong) order_after(stream(2), stream(1));
  c10::StreamGuard on_last(stream(2));
  y = x + 1;
  CHECK(first_number(y) == 2);
  x.record_stream(stream(2));
}

void event_recorded_again(bool wrong) {
  auto x = at::zeros({kLength}, sim::on());
  auto event = make_event();
  event.record(stream(0));
  x.add_(1);
  if (wrong) event.block(stream(1));
  event.record(stream(0));
  if (!wrong) event.block(stream(1));
  c10::StreamGuard on_other(stream(1));
  auto y = x + 1;
  CHECK(first_number(y) == 2);
  x.record_stream(stream(1));
}

void host_reads_copy_too_early(bool wrong) {
  auto x = ones();
  auto host = pinned(0);
  host.copy_(x, /*non_blocking=*/true);
  if (!wrong) stream(0).synchronize();
  CHECK(host.data_ptr<float>()[3] == 1);
}

void host_refills_too_early(bool wrong) {
  auto host = pinned(1);
  auto x = at::empty({kLength}, sim::on());
  x.copy_(host, /*non_blocking=*/true);
  if (!wrong) stream(0).synchronize();
  host.fill_(2);
  CHECK(x.sum().item<float>() == kOnes);
}

void host_ignores_not_yet(bool wrong) {
  auto x = ones();
  auto host = pinned(0);
  host.copy_(x, /*non_blocking=*/true);
  auto done = make_event();
  done.record(stream(0));
  while (!done.query() && !wrong) {
  }
  CHECK(host[3].item<float>() == 1);
}

void host_waits_for_the_wrong_device(bool wrong) {
  auto x = ones();
  auto host = pinned(0);
  host.copy_(x, /*non_blocking=*/true);
  at::accelerator::synchronizeDevice(wrong ? 1 : 0);
  CHECK(host[3].item<float>() == 1);
}

void freed_while_another_stream_reads(bool wrong) {
  Tensor y;
  {
    auto x = ones();
    order_after(stream(1), stream(0));
    c10::StreamGuard on_other(stream(1));
    y = x * 3;
    if (!wrong) x.record_stream(stream(1));
  }
  auto next = at::zeros({kLength}, sim::on());
  CHECK(first_number(y) == 3);
}

// Without record_stream, when the stream that owns the memory waits before it allocates again.
void freed_and_waited_for(bool wrong) {
  Tensor y;
  auto done = make_event();
  {
    auto x = ones();
    order_after(stream(1), stream(0));
    c10::StreamGuard on_other(stream(1));
    y = x * 3;
    done.record(stream(1));
  }
  if (!wrong) done.block(stream(0));
  auto next = at::zeros({kLength}, sim::on());
  CHECK(first_number(y) == 3);
}

void prefetch(bool overwrites_while_read, bool refills_while_copied) {
  constexpr int kBuffers = 2, kSteps = 6;
  std::vector<Tensor> host, device;
  std::vector<c10::Event> copied, used;
  auto sum = at::zeros({}, sim::on());
  for (int i = 0; i < kBuffers; ++i) {
    host.push_back(at::empty({kLength}, at::kFloat).pin_memory());
    device.push_back(at::empty({kLength}, sim::on()));
    copied.push_back(make_event());
    used.push_back(make_event());
  }
  order_after(stream(1), stream(0));
  for (int step = 0; step < kSteps; ++step) {
    auto slot = static_cast<std::size_t>(step % kBuffers);
    if (!refills_while_copied) copied[slot].synchronize();
    host[slot].fill_(step);
    if (!overwrites_while_read) used[slot].block(stream(1));
    {
      c10::StreamGuard on_copies(stream(1));
      device[slot].copy_(host[slot], /*non_blocking=*/true);
      copied[slot].record(stream(1));
    }
    copied[slot].block(stream(0));
    sum += device[slot].sum();
    used[slot].record(stream(0));
  }
  CHECK(sum.item<float>() == 15 * kOnes);
}

void forward_on_a_side_stream(bool wrong) {
  auto weight = at::ones({100, 100}, sim::on()).requires_grad_();
  auto input = at::ones({5, 100}, sim::on());
  if (!wrong) order_after(stream(4), stream(0));
  Tensor loss;
  {
    c10::StreamGuard on_side(stream(4));
    loss = at::mm(input, weight).relu().sum();
    input.record_stream(stream(4));
  }
  order_after(stream(0), stream(4));
  loss.record_stream(stream(0));
  loss.backward();
  weight.mutable_grad().add_(1);
  CHECK(weight.grad().sum().item<float>() == 60000);
}

void gradient_reduced_from_a_hook(bool wrong) {
  auto x = ones();
  auto weight = ones().requires_grad_();
  order_after(stream(3), stream(0));
  weight.register_hook([&](Tensor gradient) {
    auto current = sim::current_stream();
    if (!wrong) order_after(stream(3), current);
    {
      c10::StreamGuard on_comm(stream(3));
      gradient.mul_(0.5);
    }
    gradient.record_stream(stream(3));
    order_after(current, stream(3));
    return gradient;
  });
  (weight * x).sum().backward();
  CHECK(first_number(weight.grad()) == 0.5);
}

// What a collective does on a stream of its own, and what its Work::wait is there for.
void result_used_before_wait(bool wrong) {
  auto x = ones();
  order_after(stream(3), stream(0));
  sim::launch(stream(3), "all_reduce", {}, {x}, [](const auto&, const auto& written) { written[0].mul_(2); });
  if (!wrong) order_after(stream(0), stream(3));
  x.add_(1);
  if (wrong) order_after(stream(0), stream(3));
  CHECK(x.sum().item<float>() == 3 * kOnes);
}

void bucket_view_written_while_reduced(bool wrong) {
  auto bucket = at::zeros({4 * kLength}, sim::on());
  std::vector<Tensor> views;
  for (int i = 0; i < 4; ++i) views.push_back(bucket.slice(0, i * kLength, (i + 1) * kLength));
  for (auto& view : views) view.add_(1);
  order_after(stream(3), stream(0));
  auto half = bucket.slice(0, 0, 2 * kLength);
  sim::launch(stream(3), "all_reduce", {}, {half}, [](const auto&, const auto& written) { written[0].mul_(2); });
  views[wrong ? 1 : 2].add_(1);
  order_after(stream(0), stream(3));
  CHECK(bucket.sum().item<float>() == 7 * kOnes);
}

void halves_of_one_buffer(bool wrong) {
  auto y = at::zeros({kLength}, sim::on());
  for (int number : {1, 2}) order_after(stream(number), stream(0));
  {
    c10::StreamGuard on_first(stream(1));
    y.slice(0, 0, 500).add_(1);
  }
  {
    c10::StreamGuard on_second(stream(2));
    y.slice(0, wrong ? 499 : 500, kLength).add_(1);
  }
  for (int number : {1, 2}) order_after(stream(0), stream(number));
  CHECK(y.sum().item<float>() == (wrong ? kOnes + 1 : kOnes));
}

void two_threads(bool wrong) {
  auto shared = at::zeros({kLength}, sim::on());
  for (int number : {1, 2}) order_after(stream(number), stream(0));
  std::vector<std::thread> threads;
  for (int number : {1, 2})
    threads.emplace_back([&, number] {
      c10::StreamGuard on_mine(stream(number));
      auto mine = wrong ? shared : at::zeros({kLength}, sim::on());
      for (int i = 0; i < 50; ++i) mine.add_(1);
    });
  for (auto& thread : threads) thread.join();
  for (int number : {1, 2}) order_after(stream(0), stream(number));
}

void used_on_a_side_stream_of_the_other_device(bool wrong) {
  auto there = (ones() * 2).to(sim::sim_device(1));
  if (!wrong) order_after(stream(2, 1), stream(0, 1));
  c10::StreamGuard on_side(stream(2, 1));
  there.add_(1);
  there.record_stream(stream(2, 1));
  CHECK(first_number(there) == 3);
}

void source_overwritten_while_copied_to_the_other_device(bool wrong) {
  auto here = ones();
  order_after(stream(1), stream(0));
  auto there = here.to(sim::sim_device(1));
  if (!wrong) order_after(stream(1), stream(0));
  c10::StreamGuard on_side(stream(1));
  here.zero_();
  here.record_stream(stream(1));
  CHECK(first_number(there) == 1);
}

void host_follows_a_device_pointer(bool wrong) {
  auto y = ones() * 2;
  CHECK((wrong ? y.data_ptr<float>()[0] : y[0].item<float>()) == 2);
}

// Memory that its stream may still use for what was there before.
void new_memory_on_another_stream(bool wrong) {
  auto before = ones().mul(2).sum();
  auto x = at::empty({kLength}, sim::on());
  if (!wrong) order_after(stream(1), stream(0));
  c10::StreamGuard on_other(stream(1));
  x.fill_(3);
  x.record_stream(stream(1));
  CHECK(first_number(before) == 2 * kOnes);
}

const std::vector<Program>& programs() {
  static const std::vector<Program> all{
      {"producer and consumer on two streams", "not ordered: aten::mul", producer_and_consumer},
      {"an event that is recorded too early", "which aten::add_.Tensor writes on sim:0/stream0",
       event_recorded_too_early},
      {"an event of another stream", "on sim:0/stream1", event_of_another_stream},
      {"a wait after the use", "aten::add", waits_after_the_use},
      {"a write while another stream reads", "not ordered: aten::zero_ writes", write_while_read},
      {"a chain of waits", "sim:0/stream2", chain_of_waits},
      {"an event that is recorded again", "which aten::add_.Tensor writes", event_recorded_again},
      {"the host reads what is being copied to it", "the host reads pinned memory while a copy into it",
       host_reads_copy_too_early},
      {"the host refills what is being copied", "the host writes pinned memory while a copy out of it",
       host_refills_too_early},
      {"an event that is not yet there", "the host reads pinned memory", host_ignores_not_yet},
      {"the host waits for another device", "the host reads pinned memory", host_waits_for_the_wrong_device},
      {"memory freed while another stream reads it", "freed too early", freed_while_another_stream_reads},
      {"memory freed and waited for", "freed too early", freed_and_waited_for},
      {"prefetch into a buffer that is read", "aten::copy_ writes", [](bool wrong) { prefetch(wrong, false); }},
      {"prefetch from a buffer that is refilled", "the host writes pinned memory",
       [](bool wrong) { prefetch(false, wrong); }},
      {"forward on a side stream", "on sim:0/stream4", forward_on_a_side_stream},
      {"a gradient that is reduced from a hook", "on sim:0/stream3", gradient_reduced_from_a_hook},
      {"a result that is used before its wait", "which all_reduce writes on sim:0/stream3", result_used_before_wait},
      {"a view of a bucket that is being reduced", "which all_reduce writes on sim:0/stream3",
       bucket_view_written_while_reduced},
      {"two halves of one buffer", "aten::add_.Tensor writes", halves_of_one_buffer},
      {"two threads on two streams", "aten::add_.Tensor writes", two_threads},
      {"a side stream of the other device", "on sim:1/stream2", used_on_a_side_stream_of_the_other_device},
      {"a source that is overwritten while it is copied", "not ordered: aten::zero_ writes",
       source_overwritten_while_copied_to_the_other_device},
      {"new memory on another stream", "which the allocation of this memory writes", new_memory_on_another_stream},
      {"the host follows a device pointer", "the host reads device memory", host_follows_a_device_pointer},
  };
  return all;
}

std::vector<std::string> findings_of(const Program& program, bool wrong) {
  sim::start();
  sim::take_findings();
  // Nothing of the programs before is under way.
  for (int device = 0; device < sim::kDevices; ++device) at::accelerator::synchronizeDevice(device);
  program.run(wrong);
  for (int device = 0; device < sim::kDevices; ++device) at::accelerator::synchronizeDevice(device);
  return sim::take_findings();
}

}  // namespace

TEST_CASE("the order checker finds what is wrong in small programs, and nothing else", "[sim][order]") {
  CHECK(programs().size() >= 20);
  for (const auto& program : programs()) {
    INFO(program.what);
    auto wrong = findings_of(program, true);
    std::string all;
    for (const auto& finding : wrong) all += finding + "\n";
    INFO("found: " << all);
    CHECK(all.find(program.finding) != std::string::npos);
    auto right = findings_of(program, false);
    for (const auto& finding : right) FAIL_CHECK("the right program: " << finding);
  }
}

TEST_CASE("what was never shared is not reported, whatever the streams", "[sim][order]") {
  sim::CleanRun clean;
  auto x = ones();
  for (int number : {1, 2, 3}) order_after(stream(number), stream(0));
  // Reads beside one another need no order.
  std::vector<Tensor> sums;
  for (int number : {1, 2, 3}) {
    c10::StreamGuard guard(stream(number));
    sums.push_back(x.sum());
    x.record_stream(stream(number));
  }
  for (int number : {1, 2, 3}) order_after(stream(0), stream(number));
  for (std::size_t i = 0; i < sums.size(); ++i) CHECK(sums[i].item<float>() == kOnes);
}

TEST_CASE("findings name parameters, gradients and who touched them", "[sim][order]") {
  sim::start();
  sim::take_findings();
  torch::nn::Linear layer(10, 10);
  layer->to(sim::sim_device(0));
  sim::name_tensors(*layer);
  layer->forward(at::ones({2, 10}, sim::on())).sum().backward();
  {
    at::NoGradGuard no_grad;
    c10::StreamGuard on_other(stream(5));
    layer->weight.mul_(2);
    layer->weight.grad().mul_(2);
  }
  auto findings = sim::take_findings();
  REQUIRE(findings.size() >= 2);
  CHECK_THAT(findings[0], Catch::Contains("'weight' (block ") && Catch::Contains("sim:0/stream5") &&
                              Catch::Contains("sim:0/stream0"));
  CHECK_THAT(findings.back(), Catch::Contains("the gradient of 'weight'"));
  at::accelerator::synchronizeDevice(0);
}
