// Regions that a caller names: fabric::checkpoint and fabric::save_region. The work is the frame's (frame.cpp).
#include <fabric/strategies/activation.h>

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <optional>

#include "strategies/activation/frame.h"

namespace fabric {
namespace detail {

struct CheckpointScope::State {
  explicit State(std::shared_ptr<activation::CheckpointFrame> made)
      : frame(std::move(made)), first({frame.get(), false}), cast_cache(at::autocast::is_autocast_cache_enabled()) {
    if (frame->kept())
      recording.emplace(dispatch::Level::below_autograd,
                        std::make_shared<activation::KeptResultsClient>(frame->kept(), false));
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~State() { at::autocast::set_autocast_cache_enabled(cast_cache); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::shared_ptr<activation::CheckpointFrame> frame;
  activation::PresentFrame first;
  std::optional<dispatch::Activation> recording;
  bool cast_cache;
};

CheckpointScope::CheckpointScope(const CheckpointOptions& options, std::unique_ptr<CheckpointRegion> region) {
  if (!c10::GradMode::is_enabled()) return;
  activation::require_engine();
  activation::Devices devices;
  region->for_each_input([&](at::Tensor& tensor) { activation::add_once(devices, tensor.device()); });
  auto frame = std::make_shared<activation::CheckpointFrame>(options, devices);
  region->for_each_input([&](at::Tensor& tensor) {
    frame->keep_input(tensor);
    tensor = at::empty({0}, tensor.options());
  });
  frame->report_inputs();
  frame->set_region(std::move(region));
  state_ = std::make_unique<State>(std::move(frame));
}
CheckpointScope::~CheckpointScope() = default;

}  // namespace detail

struct SaveRegion::State {
  State() {
    ++detail::activation::save_regions;
    if (detail::activation::present.frame || detail::activation::open_passes > 0)
      keeping.emplace(dispatch::Level::below_autograd, std::make_shared<detail::activation::SaveRegionClient>());
  }
  ~State() { --detail::activation::save_regions; }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  std::optional<dispatch::Activation> keeping;
};

SaveRegion::SaveRegion() : state_(std::make_unique<State>()) {}
SaveRegion::~SaveRegion() = default;

}  // namespace fabric
