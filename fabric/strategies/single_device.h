#pragma once

#include <fabric/strategies/strategy.h>

namespace fabric {

/// One process, one device; collectives return their input. Needs no launch.
class FABRIC_API SingleDeviceStrategy : public Strategy {
 public:
  SingleDeviceStrategy() = default;
  explicit SingleDeviceStrategy(c10::Device device) : device_(device), is_own_(true) {}
  std::string name() const override { return "single_device"; }
  bool requires_launch() const override { return false; }
  std::string finetuning_adapter() const override { return "base"; }
  c10::Device root_device() const override { return device_; }
  std::vector<c10::Device> own_devices() const override {
    return is_own_ ? std::vector<c10::Device>{device_} : std::vector<c10::Device>{};
  }
  void set_devices(std::vector<c10::Device> devices) override { device_ = devices.at(0); }
  const RankInfo& ranks() const override { return ranks_; }
  const ProcessGroup& process_group() const override { return group_; }

 private:
  c10::Device device_ = c10::kCPU;
  bool is_own_ = false;
  RankInfo ranks_;
  ProcessGroup group_ = ProcessGroup::single();
};

}  // namespace fabric
