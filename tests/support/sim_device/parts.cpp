#include "tests/support/sim_device/parts.h"

#include <memory>
#include <mutex>

#include <fabric/accelerators/torch_accelerator.h>
#include <fabric/plugins/collectives/backend.h>

#include "tests/support/sim_device/device.h"
#include "tests/support/sim_device/process_group.h"

namespace sim {
namespace {

class SimAccelerator : public fabric::TorchAccelerator {
 public:
  SimAccelerator() : TorchAccelerator(c10::DeviceType::PrivateUse1) {}
  std::string device_name(c10::Device) const override { return "simulated device"; }
  bool can_access_peer(c10::Device, c10::Device) const override { return true; }
};

void register_once() {
  fabric::register_accelerator(
      "sim", [] { return std::make_shared<SimAccelerator>(); }, false, "simulated devices");
  fabric::register_backend(
      "sim",
      {.make = make_process_group,
       .device = c10::DeviceType::PrivateUse1,
       .suits = [](const fabric::RankInfo&,
                   c10::Device device) { return device.type() == c10::DeviceType::PrivateUse1 ? 30 : 0; }},
      false, "tensors of simulated devices, in shared memory; gloo beside it for the CPU");
}

}  // namespace

void register_parts() {
  start();
  static std::once_flag once;
  std::call_once(once, register_once);
}

}  // namespace sim
