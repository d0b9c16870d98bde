#include "strategies/activation/surroundings.h"

#include <algorithm>
#include <mutex>
#include <set>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/ScalarTypeToTypeMeta.h>

namespace fabric::detail::activation {
namespace {

at::Tensor swap_state(at::Generator generator, const at::Tensor& state) {
  std::lock_guard lock(generator.mutex());
  at::Tensor before = generator.get_state();
  generator.set_state(state);
  return before;
}

}  // namespace

void add_once(Devices& devices, c10::Device device) {
  if (std::find(devices.begin(), devices.end(), device) == devices.end()) devices.push_back(device);
}

RandomState::RandomState(const Devices& devices) {
  remember(at::detail::getDefaultCPUGenerator());
  for (auto device : devices)
    if (!device.is_cpu()) remember(at::globalContext().defaultGenerator(device));
}
void RandomState::remember(at::Generator generator) {
  std::lock_guard lock(generator.mutex());
  states_.emplace_back(generator, generator.get_state());
}
void RandomState::put() const {
  for (const auto& [generator, state] : states_) swap_state(generator, state);
}
Scope RandomState::restore() const {
  std::vector<std::pair<at::Generator, at::Tensor>> before;
  for (const auto& [generator, state] : states_) before.emplace_back(generator, swap_state(generator, state));
  return Scope([before = std::move(before)] {
    for (const auto& [generator, state] : before) swap_state(generator, state);
  });
}

Surroundings::Surroundings(const Devices& devices) : dtype_(c10::get_default_dtype_as_scalartype()) {
  std::set<c10::DeviceType> types{c10::kCPU};
  for (auto device : devices) types.insert(device.type());
  for (auto type : types) {
    if (!at::autocast::is_autocast_available(type)) continue;
    casts_.push_back({type, at::autocast::get_autocast_dtype(type), at::autocast::is_autocast_enabled(type)});
  }
  for (const auto& client : dispatch::active_clients(dispatch::Level::above_autograd))
    if (!dynamic_cast<const FirstRunClient*>(client.get())) clients_.push_back(client);
}

bool Surroundings::are_present() const {
  return std::all_of(casts_.begin(), casts_.end(), [](const Cast& cast) {
    return cast.enabled == at::autocast::is_autocast_enabled(cast.type) &&
           cast.dtype == at::autocast::get_autocast_dtype(cast.type);
  });
}

Scope Surroundings::restore() const {
  Surroundings before = *this;
  before.read();
  write();
  auto above = std::make_shared<std::vector<std::unique_ptr<dispatch::Activation>>>();
  for (const auto& client : clients_)
    above->push_back(std::make_unique<dispatch::Activation>(dispatch::Level::above_autograd, client));
  return Scope([before, above] {
    while (!above->empty()) above->pop_back();
    before.write();
  });
}

void Surroundings::read() {
  for (auto& cast : casts_)
    cast = {cast.type, at::autocast::get_autocast_dtype(cast.type), at::autocast::is_autocast_enabled(cast.type)};
  cache_ = at::autocast::is_autocast_cache_enabled();
  dtype_ = c10::get_default_dtype_as_scalartype();
}

void Surroundings::write() const {
  for (const auto& cast : casts_) {
    at::autocast::set_autocast_enabled(cast.type, cast.enabled);
    at::autocast::set_autocast_dtype(cast.type, cast.dtype);
  }
  at::autocast::set_autocast_cache_enabled(cache_);
  if (dtype_ != c10::get_default_dtype_as_scalartype()) c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype_));
}

}  // namespace fabric::detail::activation
