// Streams, events and guards, as LibTorch asks a device for them.
#include "tests/support/sim_device/streams.h"

#include <array>
#include <atomic>
#include <chrono>

#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "tests/support/sim_device/memory.h"
#include "tests/support/sim_device/order.h"

namespace sim {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
thread_local int device_now = 0;
thread_local std::array<int, kDevices> stream_now{};

// Late on purpose, so that who asks and goes on regardless is found: "not yet" twice after each change.
constexpr int kDenials = 2;

struct Event {
  VectorClock clock;
  Place stream = 0;
  int denials = 0;
  std::chrono::steady_clock::time_point time;
};

Event& event_of(void* event) { return *static_cast<Event*>(event); }
int index_of(c10::Device device) { return device.has_index() ? device.index() : device_now; }

void check_index(int device) {
  TORCH_CHECK(device >= 0 && device < kDevices, "sim: there is no device ", device, ", only 0 to ", kDevices - 1);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return sim_device(device_now); }
  void setDevice(c10::Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { device_now = device.index(); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  c10::Stream getStream(c10::Device device) const override {
    int index = index_of(device);
    check_index(index);
    return make_stream(index, stream_now[static_cast<std::size_t>(index)]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return make_stream(index_of(device), 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    static std::atomic<unsigned> taken{0};
    return make_stream(index_of(device), 1 + static_cast<int>(taken++ % (kStreams - 1)));
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStreamFromGlobalPool(device, false); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = getStream(stream.device());
    stream_now[static_cast<std::size_t>(stream.device_index())] = static_cast<int>(stream.id());
    return before;
  }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    Lock lock(Order::instance().mutex());
    if (!*event) *event = new Event;
    event_of(*event) = {Order::instance().event_clock(place_of(stream)), place_of(stream), 0,
                        std::chrono::steady_clock::now()};
  }
  void block(void* event, const c10::Stream& stream) const override {
    Lock lock(Order::instance().mutex());
    if (event) Order::instance().join(place_of(stream), event_of(event).clock);
  }
  bool queryEvent(void* event) const override {
    if (!event) return true;
    Lock lock(Order::instance().mutex());
    auto& known = event_of(event);
    if (known.clock[known.stream] <= Order::instance().clock(kHost)[known.stream]) return true;
    if (++known.denials <= kDenials) return false;
    Order::instance().host_learns(known.clock);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    if (event) wait_for(event_of(event).clock);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* from, void* to, c10::DeviceIndex) const override {
    return std::chrono::duration<double, std::milli>(event_of(to).time - event_of(from).time).count();
  }

  bool queryStream(const c10::Stream& stream) const override {
    static thread_local int denials = 0;
    Lock lock(Order::instance().mutex());
    const auto& clock = Order::instance().clock(place_of(stream));
    bool known = clock[place_of(stream)] <= Order::instance().clock(kHost)[place_of(stream)];
    if (!known && ++denials <= kDenials) return false;
    denials = 0;
    if (!known) Order::instance().host_learns(clock);
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Lock lock(Order::instance().mutex());
    wait_for(Order::instance().clock(place_of(stream)));
  }
  void synchronizeDevice(c10::DeviceIndex device) const override {
    Lock lock(Order::instance().mutex());
    VectorClock all;
    for (int stream = 0; stream < kStreams; ++stream) all.join(Order::instance().clock(place_of(device, stream)));
    wait_for(all);
  }
  void recordDataPtrOnStream(const c10::DataPtr& pointer, const c10::Stream& stream) const override {
    device_allocator().recordStream(pointer, stream);
  }

 private:
  static void wait_for(const VectorClock& clock) {
    Lock lock(Order::instance().mutex());
    Order::instance().count_wait(Order::instance().counters.host_waits);
    Order::instance().host_learns(VectorClock(clock));
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

}  // namespace

int current_device() { return device_now; }
void set_current_device(int device) {
  check_index(device);
  device_now = device;
}
Place current_place(int device) { return place_of(device, stream_now[static_cast<std::size_t>(device)]); }

}  // namespace sim
