#include <fabric/helpers/lr/lr_scheduler_support_internal.h>

#include <fabric/base/error.h>
#include <fabric/helpers/lr/lr_schedulers.h>

namespace fabric {
namespace {

constexpr const char* kSupportedSchedulers =
    "LambdaLR, MultiplicativeLR, StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR, ReduceLROnPlateau, "
    "CosineAnnealingWarmRestarts, ConstantLR, LinearLR";

template <class... Classes>
bool is_one_of(const LRScheduler& scheduler) {
  return (... || (dynamic_cast<const Classes*>(&scheduler) != nullptr));
}

}  // namespace

bool is_supported(const LRScheduler& scheduler) {
  return is_one_of<LambdaLR, MultiplicativeLR, StepLR, MultiStepLR, ExponentialLR, CosineAnnealingLR, ReduceLROnPlateau,
                   CosineAnnealingWarmRestarts, ConstantLR, LinearLR>(scheduler);
}

void require_supported(const LRScheduler& scheduler, bool allow_untested, const std::string& where,
                       const FinetuningMessages& messages) {
  if (is_supported(scheduler)) return;
  std::string what = where + ": " + scheduler.name() +
                     " is not among the schedulers known to work with groups that are added while training";
  if (!allow_untested)
    throw ConfigError(what + " (" + kSupportedSchedulers + "). Take one of these, or set allow_untested to try it");
  messages.warn(what + "; it is used because of allow_untested");
}

}  // namespace fabric
