// Random numbers: a device's generator holds one of the CPU's, so that a device draws what the CPU draws with its seed.
#include "tests/support/sim_device/generators.h"

#include <array>

#include <ATen/CPUGeneratorImpl.h>

#include "tests/support/sim_device/streams.h"

namespace sim {
namespace {

class SimGenerator final : public c10::GeneratorImpl {
 public:
  SimGenerator(int device, at::Generator inner)
      : GeneratorImpl(sim_device(device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        inner(std::move(inner)) {}
  void set_current_seed(std::uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(std::uint64_t offset) override { inner.set_offset(offset); }
  std::uint64_t get_offset() const override { return inner.get_offset(); }
  std::uint64_t current_seed() const override { return inner.current_seed(); }
  std::uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  SimGenerator* clone_impl() const override { return new SimGenerator(device_.index(), inner.clone()); }

  at::Generator inner;
};

std::array<at::Generator, kDevices>& generators() {
  static auto* all = [] {
    auto* made = new std::array<at::Generator, kDevices>;
    for (int device = 0; device < kDevices; ++device) (*made)[static_cast<std::size_t>(device)] = new_generator(device);
    return made;
  }();
  return *all;
}

}  // namespace

const at::Generator& default_generator(int device) {
  return generators().at(static_cast<std::size_t>(device < 0 ? current_device() : device));
}

at::Generator new_generator(int device) {
  return at::make_generator<SimGenerator>(device < 0 ? current_device() : device,
                                          at::detail::createCPUGenerator(c10::default_rng_seed_val));
}

at::Generator inner_generator(const at::Generator& generator) {
  if (generator.device().type() != c10::DeviceType::PrivateUse1) return generator;
  return static_cast<SimGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

LentGenerator::LentGenerator(int device) : lender_(inner_generator(default_generator(device))) {
  auto* cpu = at::detail::getDefaultCPUGenerator().unsafeGetGeneratorImpl();
  cpu_state_ = cpu->get_state();
  cpu->set_state(*lender_.unsafeGetGeneratorImpl()->get_state());
}

LentGenerator::~LentGenerator() {
  auto* cpu = at::detail::getDefaultCPUGenerator().unsafeGetGeneratorImpl();
  lender_.unsafeGetGeneratorImpl()->set_state(*cpu->get_state());
  cpu->set_state(*cpu_state_);
}

}  // namespace sim
