#include "tests/support/sim_device/device.h"

#include <sys/mman.h>

#include <mutex>

#include <ATen/detail/PrivateUse1HooksInterface.h>

#include "tests/support/sim_device/cpu_kernels.h"
#include "tests/support/sim_device/faults.h"
#include "tests/support/sim_device/generators.h"
#include "tests/support/sim_device/host_allocator.h"
#include "tests/support/sim_device/pinned.h"

namespace sim {
namespace {

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_current_device(device); }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current_device()); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    auto before = getCurrentDevice();
    set_current_device(device);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
  c10::Device getDeviceFromPtr(void* address) const override {
    Block* block = block_holding(address);
    TORCH_CHECK(block, "sim: this address is no device's");
    return sim_device(block->device());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override { return default_generator(device); }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override { return new_generator(device); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    int device = impl->device().index();
    auto old = extent_of(storage);
    Block* after = allocate(bytes, current_place(device));
    if (old.block && after) {
      Kernel kernel("aten::resize_storage");
      kernel.set_device(device);
      kernel.begin();
      Lock lock(Order::instance().mutex());
      std::size_t kept = std::min(old.end - old.begin, bytes);
      Order::instance().access(*old.block, old.begin, old.begin + kept, /*writes=*/false, kernel.access());
      Order::instance().access(*after, 0, kept, /*writes=*/true, kernel.access());
      std::memcpy(after->bytes, old.block->bytes + old.begin, kept);
    }
    impl->set_data_ptr_noswap(data_pointer(after, device));
    impl->set_nbytes(bytes);
  }
};

void make_devices() {
  device_arena().map(PROT_NONE);
  map_pinned_memory();
  c10::register_privateuse1_backend("sim");
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &device_allocator());
  take_over_host_allocator();
  prefer_cpu_kernels();
  Order::instance().when_host_learns([] {
    settle_flights();
    settle_blocks();
  });
}

}  // namespace

void start() {
  static std::once_flag once;
  std::call_once(once, make_devices);
  watch_faults();
}

}  // namespace sim
