#include <algorithm>
#include <unordered_set>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/strategies/activation.h>

namespace fabric {
namespace {

// Costly to compute and small beside what they are computed from. Attention on the CPU is among them on purpose.
const std::vector<std::string> kCostly{
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::_scaled_mm",
    "aten::convolution",
    "aten::convolution_backward",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
    "aten::max",
    "aten::topk",
    "aten::upsample_bilinear2d",
    "_c10d_functional::reduce_scatter_tensor",
    "_c10d_functional::all_to_all_single",
};

std::string without_overload(std::string name) {
  auto dot = name.find('.', name.find("::"));
  return dot == std::string::npos ? name : name.substr(0, dot);
}

const std::unordered_set<std::string>& all_operators() {
  static const auto all = [] {
    std::unordered_set<std::string> names;
    for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) names.insert(name.name);
    return names;
  }();
  return all;
}

class Selective : public SavePolicy {
 public:
  Selective(std::shared_ptr<const SelectiveSaving> settings,
            std::shared_ptr<const std::unordered_set<std::string>> saved)
      : settings_(std::move(settings)), saved_(std::move(saved)) {}

  bool save(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> inputs,
            c10::ArrayRef<c10::IValue> outputs) override {
    const auto& name = op.schema().name();
    if (name == "aten::_to_copy" && goes_to_the_host(inputs, outputs)) return true;
    if (name != "aten::mm") return saved_->contains(name);
    auto right = inputs[1].toTensor().sizes();
    const auto& shapes = settings_->recompute_shapes;
    if (std::find(shapes.begin(), shapes.end(), std::pair(right[0], right[1])) != shapes.end()) return false;
    ++products_;
    return saved_->contains(name) && (!settings_->every_second_mm || products_ % 2 == 1);
  }

 private:
  // Waiting for the device a second time costs more than the copy's memory.
  static bool goes_to_the_host(c10::ArrayRef<c10::IValue> inputs, c10::ArrayRef<c10::IValue> outputs) {
    return !inputs[0].toTensor().is_cpu() && outputs[0].toTensor().is_cpu();
  }
  std::shared_ptr<const SelectiveSaving> settings_;
  std::shared_ptr<const std::unordered_set<std::string>> saved_;
  std::int64_t products_ = 0;
};

}  // namespace

std::vector<std::string> default_saved_operators() {
  std::vector<std::string> names;
  for (const auto& name : kCostly)
    if (all_operators().contains(name)) names.push_back(name);
  return names;
}

std::function<std::unique_ptr<SavePolicy>()> selective_saving(SelectiveSaving settings) {
  auto saved = std::make_shared<std::unordered_set<std::string>>();
  for (const auto& name : settings.save.empty() ? default_saved_operators() : settings.save) {
    auto plain = without_overload(name);
    if (!all_operators().contains(plain)) {
      auto nearest = nearest_name(plain, {all_operators().begin(), all_operators().end()});
      throw ConfigError("there is no operator '" + name + "'" +
                        (nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
    }
    saved->insert(plain);
  }
  auto kept = std::make_shared<const SelectiveSaving>(std::move(settings));
  return [kept, saved] { return std::make_unique<Selective>(kept, saved); };
}

}  // namespace fabric
