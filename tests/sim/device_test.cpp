// The device itself: memory, streams, random numbers, operators.
#include <ATen/autocast_mode.h>
#include <c10/core/StreamGuard.h>

#include "tests/sim/sim_test_support.h"

using at::Tensor;

TEST_CASE("the device is an accelerator to LibTorch", "[sim][device]") {
  sim::CleanRun clean;
  CHECK(at::getAccelerator() == c10::DeviceType::PrivateUse1);
  CHECK(at::accelerator::deviceCount() == sim::kDevices);
  CHECK(c10::Device("sim:1") == sim::sim_device(1));
  auto a = torch::arange(6, torch::kFloat).view({2, 3}), b = a.to("sim");
  CHECK(b.device().str() == "sim:0");
  CHECK((b * 2 + 1).sum().item<float>() == 36);
  at::accelerator::setCurrentStream(sim::make_stream(0, 3));
  CHECK(at::accelerator::getCurrentStream(0).id() == 3);
  at::accelerator::setCurrentStream(sim::make_stream(0, 0));
}

TEST_CASE("views, results given as arguments and new shapes keep their memory", "[sim][device]") {
  sim::CleanRun clean;
  auto a = torch::arange(6, torch::kFloat).view({2, 3}), b = a.to("sim");
  b.t().add_(1);
  CHECK(at::equal(b.cpu(), a + 1));
  auto out = at::empty({0}, b.options());
  at::mm_out(out, b, b.t());
  CHECK(at::equal(out.cpu(), at::mm(a + 1, (a + 1).t())));
  auto z = at::empty({0}, sim::on());
  z.set_(b);
  z[1].mul_(3);
  CHECK(b[1].sum().item<float>() == 45);
  b.resize_({4, 5});
  b.index_put_({torch::tensor({1}).to("sim")}, torch::ones({5}).to("sim"));
  CHECK(b[1].sum().item<float>() == 5);
  CHECK(b.flatten()[0].item<float>() == 1);
  auto complex = at::view_as_real(at::complex(z, z));
  complex.zero_();
  auto c = torch::randn({3, 2}, torch::kComplexFloat), d = c.to("sim");
  CHECK(at::equal((d.conj() * d).cpu(), c.conj() * c));
}

TEST_CASE("memory of the device behind a pointer with another owner is the device's", "[sim][device]") {
  sim::CleanRun clean;
  auto whole = torch::arange(100, torch::kFloat).to("sim");
  auto* begin = whole.mutable_data_ptr<float>() + 10;
  auto part = torch::from_blob(begin, {20}, sim::on().dtype(at::kFloat));
  part.mul_(2);
  part.record_stream(sim::make_stream(0, 3));  // nothing to keep
  CHECK(part.sum().item<float>() == 2 * 390);
  CHECK(whole.sum().item<float>() == 4950 + 390);
  whole.add_(0);
  {
    c10::StreamGuard other(sim::make_stream(0, 4));
    part.add_(1);
  }
  auto findings = sim::take_findings();
  REQUIRE(findings.size() == 1);
  CHECK_THAT(findings[0], Catch::Contains("bytes 40 to 120 of block"));
  at::accelerator::synchronizeDevice(0);
}

TEST_CASE("views keep the marks of what they are views of", "[sim][device]") {
  sim::CleanRun clean;
  constexpr auto kMark = c10::DispatchKey::Fake;
  auto tensor = torch::ones({4, 3}, sim::on());
  auto marked = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(tensor.storage()),
                                                         tensor.key_set() | c10::DispatchKeySet(kMark), tensor.dtype());
  marked.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  c10::impl::ExcludeDispatchKeyGuard not_called(kMark);
  CHECK(marked.t().key_set().has(kMark));
  CHECK(marked.t().conj().key_set().has(kMark));
  CHECK_FALSE((marked.t() + 1).key_set().has(kMark));
}

TEST_CASE("tensors of two devices do not meet", "[sim][device]") {
  sim::CleanRun clean;
  auto zero = at::ones({4}, sim::on(0)), one = at::ones({4}, sim::on(1)), cpu = at::ones({4});
  CHECK_THROWS_WITH(zero + one, Catch::Contains("Expected all tensors to be on the same device"));
  CHECK_THROWS_WITH(zero + cpu, Catch::Contains("Expected all tensors to be on the same device"));
  CHECK((zero + at::ones({})).sum().item<float>() == 8);
  CHECK(at::equal(cpu.to("sim:1").to("sim:0").cpu(), cpu));
}

TEST_CASE("memory is counted, limited and given back", "[sim][device]") {
  sim::CleanRun clean;
  at::accelerator::emptyCache();
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  auto allocated = [] { return at::accelerator::getDeviceStats(0).allocated_bytes[kAll]; };
  at::accelerator::resetPeakStats(0);
  auto before = allocated().current;
  {
    auto tensor = at::empty({1 << 20}, sim::on());
    CHECK(allocated().current == before + (4 << 20));
  }
  CHECK(allocated().current == before);
  CHECK(allocated().peak >= before + (4 << 20));
  auto reserved = at::accelerator::getDeviceStats(0).reserved_bytes[kAll].current;
  at::accelerator::emptyCache();
  CHECK(at::accelerator::getDeviceStats(0).reserved_bytes[kAll].current < reserved);
  auto whole = sim::capacity();
  sim::set_capacity(64 << 20);
  CHECK_THROWS_AS(at::empty({1 << 26}, sim::on()), c10::OutOfMemoryError);
  CHECK(at::ones({100}, sim::on()).sum().item<float>() == 100);
  sim::set_capacity(whole);
}

TEST_CASE("freed memory is used again on its own stream", "[sim][device]") {
  sim::CleanRun clean;
  void* first = at::ones({12345}, sim::on()).mutable_data_ptr();
  CHECK(at::ones({12345}, sim::on()).mutable_data_ptr() == first);
  c10::StreamGuard other(sim::make_stream(0, 7));
  CHECK(at::ones({12345}, sim::on()).mutable_data_ptr() != first);
}

TEST_CASE("random numbers are the CPU's, and each device has its own", "[sim][device]") {
  sim::CleanRun clean;
  torch::manual_seed(7);
  auto cpu = torch::randn({40});
  torch::manual_seed(7);
  auto zero = torch::randn({40}, sim::on(0)), one = torch::randn({40}, sim::on(1));
  CHECK(at::equal(zero.cpu(), cpu));
  CHECK(at::equal(one.cpu(), cpu));
  auto generator = at::globalContext().defaultGenerator(sim::sim_device(0));
  auto state = generator.get_state();
  auto drawn = torch::rand({5}, sim::on());
  generator.set_state(state);
  CHECK(at::equal(torch::rand({5}, sim::on()).cpu(), drawn.cpu()));
  // An operator that takes no generator draws from the device's, too, and leaves the CPU's alone.
  torch::manual_seed(9);
  auto expected = std::get<0>(at::native_dropout(torch::ones({64}), 0.5, true));
  torch::manual_seed(9);
  auto cpu_state = at::globalContext().defaultGenerator(c10::kCPU).get_state();
  CHECK(at::equal(std::get<0>(at::native_dropout(torch::ones({64}).to("sim"), 0.5, true)).cpu(), expected));
  CHECK(at::equal(at::globalContext().defaultGenerator(c10::kCPU).get_state(), cpu_state));
}

TEST_CASE("a host that follows a pointer of the device is told by whom it was written", "[sim][device]") {
  sim::start();
  sim::take_findings();
  auto tensor = at::ones({100}, sim::on()) * 2;
  float number = tensor.data_ptr<float>()[7];
  CHECK(number == 2);
  tensor.data_ptr<float>()[8] = 5;
  // The page is closed again by the next kernel.
  tensor.add_(0);
  number = tensor.data_ptr<float>()[0];
  auto findings = sim::take_findings();
  REQUIRE(findings.size() == 2);
  CHECK_THAT(findings[0], Catch::Contains("the host reads device memory") && Catch::Contains("aten::mul.Tensor"));
  CHECK_THAT(findings[1], Catch::Contains("aten::add_.Tensor"));
  CHECK(tensor[8].item<float>() == 5);
}

TEST_CASE("autocast and the scaler's operators work on the device", "[sim][device]") {
  sim::CleanRun clean;
  std::vector<Tensor> gradients{torch::ones({3}).to("sim") * INFINITY, torch::ones({2}).to("sim")};
  auto found = at::zeros({1}, sim::on()), scale = at::ones({1}, sim::on());
  at::_amp_foreach_non_finite_check_and_unscale_(gradients, found, scale);
  at::_foreach_mul_(gradients, 2.0);
  CHECK(found.item<float>() == 1);
  CHECK(gradients[1].sum().item<float>() == 4);
  constexpr auto kSim = c10::DeviceType::PrivateUse1;
  at::autocast::set_autocast_enabled(kSim, true);
  at::autocast::set_autocast_dtype(kSim, at::kBFloat16);
  auto product = at::matmul(at::ones({2, 2}, sim::on()), at::ones({2, 2}, sim::on()));
  auto soft = at::softmax(product, -1);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(kSim, false);
  CHECK(product.scalar_type() == at::kBFloat16);
  CHECK(soft.scalar_type() == at::kFloat);
}

TEST_CASE("waits of the host are counted", "[sim][device]") {
  sim::CleanRun clean;
  auto tensor = at::ones({10}, sim::on());
  sim::Count count;
  auto sum = (tensor * 2).sum();
  CHECK(count.host_waits() == 0);
  sum.item<float>();
  CHECK(count.host_waits() == 1);
  tensor.cpu();
  at::nonzero(tensor);
  at::accelerator::synchronizeDevice(0);
  CHECK(count.host_waits() == 4);
  tensor.copy_(at::ones({10}));
  CHECK(count.blocking_copies() == 1);
  CHECK(count.kernels() > 4);
}
