#include "plugins/collectives/transport.h"

#include <functional>

#include <fabric/base/log.h>

#include "plugins/collectives/store/job_store.h"

namespace fabric::collectives {
namespace {

using BackendType = c10d::ProcessGroup::BackendType;

// LibTorch keeps one backend for each of these types. Types that it does not know share one, which would make two
// backends of one group the same.
BackendType type_of(const c10d::Backend& backend, BackendType taken) {
  auto type = c10d::ProcessGroup::strToBackendType(backend.getBackendName());
  return type == taken ? BackendType::UCC : type;
}

void quietly(const char* what, const std::function<void()>& action) noexcept {
  try {
    action();
  } catch (const std::exception& error) {
    log::debug(std::string(what) + " of a process group: " + error.what());
  }
}

}  // namespace

const c10::intrusive_ptr<c10d::ProcessGroup>& Transport::torch_group(const Identity& id) {
  if (torch_group_) return torch_group_;
  auto made = c10::make_intrusive<c10d::ProcessGroup>(store ? store : open_private_store(), id.rank, id.size);
  auto cpu_type = type_of(*cpu->c10d(), BackendType::UNDEFINED);
  made->setBackend(c10::DeviceType::CPU, cpu_type, cpu->c10d());
  made->setDefaultBackend(cpu_type);
  if (on_device) {
    auto device_type = type_of(*on_device->c10d(), cpu_type);
    made->setBackend(id.device.type(), device_type, on_device->c10d());
    made->setDefaultBackend(device_type);
  }
  made->setGroupName(id.name);
  torch_group_ = std::move(made);
  return torch_group_;
}

void Transport::wrap(c10::intrusive_ptr<c10d::ProcessGroup> torch_group, Identity& id) {
  for (auto type : torch_group->getDeviceTypes()) {
    auto backend = std::make_shared<CollectiveBackend>(torch_group->getBackend(type.type()));
    if (type.is_cpu())
      cpu = std::move(backend);
    else
      id.device = type, on_device = std::move(backend);
  }
  if (!cpu)
    throw MisuseError(
        "the LibTorch group has no backend for CPU tensors, which checks and values travel as. Make it with "
        "one, for instance gloo beside nccl");
  owned = false;
  torch_group_ = std::move(torch_group);
}

void Transport::close() noexcept {
  if (owned && cpu) quietly("closing the CPU backend", [this] { cpu->close(); });
  if (owned && on_device) quietly("closing the device backend", [this] { on_device->close(); });
  quietly("freeing", [this] {
    torch_group_.reset();
    on_device.reset();
    cpu.reset();
    store.reset();
  });
}

}  // namespace fabric::collectives
