#include <fabric/dispatch/measure_flops.h>

#include <atomic>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fabric/dispatch/operator_hooks.h>

namespace fabric {
namespace {

using Inputs = c10::ArrayRef<const c10::IValue>;
using Count = std::int64_t (*)(Inputs);

c10::IntArrayRef sizes(Inputs in, std::size_t i) { return in[i].toTensor().sizes(); }

// [m, k] x [k, n]
std::int64_t product(c10::IntArrayRef a, c10::IntArrayRef b) { return 2 * a[0] * a[1] * b[1]; }
// [b, m, k] x [b, k, n]
std::int64_t batched_product(c10::IntArrayRef a, c10::IntArrayRef b) { return 2 * a[0] * a[1] * a[2] * b[2]; }

std::int64_t elements(c10::IntArrayRef sizes, std::size_t from) {
  std::int64_t all = 1;
  for (std::size_t i = from; i < sizes.size(); ++i) all *= sizes[i];
  return all;
}

// Each of the batch's output positions is a product with the whole filter. A transposed one takes the input's
// positions.
std::int64_t convolution(c10::IntArrayRef input, c10::IntArrayRef weight, c10::IntArrayRef output, bool transposed) {
  auto positions = elements(transposed ? input : output, 2);
  return 2 * positions * elements(weight, 0) * input[0];
}

std::int64_t output_positions(std::int64_t in, std::int64_t kernel, std::int64_t stride, std::int64_t padding,
                              std::int64_t dilation) {
  return (in + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

// input, weight, bias, stride, padding, dilation, transposed, …
std::int64_t convolution_forward(Inputs in) {
  auto input = sizes(in, 0), weight = sizes(in, 1);
  auto stride = in[3].toIntVector(), padding = in[4].toIntVector(), dilation = in[5].toIntVector();
  bool transposed = in[6].toBool();
  std::vector<std::int64_t> output(input.begin(), input.end());
  auto at = [](const std::vector<std::int64_t>& list, std::size_t i) { return list.size() == 1 ? list[0] : list[i]; };
  for (std::size_t i = 2; i < input.size() && !transposed; ++i)
    output[i] = output_positions(input[i], weight[i], at(stride, i - 2), at(padding, i - 2), at(dilation, i - 2));
  return convolution(input, weight, output, transposed);
}

// grad_output, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask
std::int64_t convolution_backward(Inputs in) {
  auto output = sizes(in, 0), input = sizes(in, 1), weight = sizes(in, 2);
  auto mask = in[10].toBoolList();
  return convolution(input, weight, output, in[7].toBool()) * (int(mask[0]) + int(mask[1]));
}

struct Attention {
  Attention(c10::IntArrayRef query, c10::IntArrayRef key, c10::IntArrayRef value)
      : scores(2 * query[0] * query[1] * query[2] * query[3] * key[2]),
        mixture(2 * query[0] * query[1] * query[2] * key[2] * value[3]) {}
  std::int64_t scores, mixture;
};

std::int64_t attention_forward(Inputs in) {
  Attention a(sizes(in, 0), sizes(in, 1), sizes(in, 2));
  return a.scores + a.mixture;
}
// grad_out, query, key, value, …: the scores once more, their gradient and the values' by the mixture's products, the
// gradients of query and key by the scores'.
std::int64_t attention_backward(Inputs in) {
  Attention a(sizes(in, 1), sizes(in, 2), sizes(in, 3));
  return 3 * a.scores + 2 * a.mixture;
}

const std::unordered_map<std::string_view, Count>& counts() {
  static const std::unordered_map<std::string_view, Count> all = {
      {"aten::mm", [](Inputs in) { return product(sizes(in, 0), sizes(in, 1)); }},
      {"aten::addmm", [](Inputs in) { return product(sizes(in, 1), sizes(in, 2)); }},
      {"aten::bmm", [](Inputs in) { return batched_product(sizes(in, 0), sizes(in, 1)); }},
      {"aten::baddbmm", [](Inputs in) { return batched_product(sizes(in, 1), sizes(in, 2)); }},
      {"aten::convolution", convolution_forward},
      {"aten::convolution_backward", convolution_backward},
      {"aten::_scaled_dot_product_flash_attention", attention_forward},
      {"aten::_scaled_dot_product_flash_attention_for_cpu", attention_forward},
      {"aten::_scaled_dot_product_efficient_attention", attention_forward},
      {"aten::_scaled_dot_product_cudnn_attention", attention_forward},
      {"aten::_scaled_dot_product_fused_attention_overrideable", attention_forward},  // devices of other libraries
      {"aten::_scaled_dot_product_flash_attention_backward", attention_backward},
      {"aten::_scaled_dot_product_flash_attention_for_cpu_backward", attention_backward},
      {"aten::_scaled_dot_product_efficient_attention_backward", attention_backward},
      {"aten::_scaled_dot_product_cudnn_attention_backward", attention_backward},
      {"aten::_scaled_dot_product_fused_attention_overrideable_backward", attention_backward},
  };
  return all;
}

// A backward pass may run on several threads.
class FlopCounter : public dispatch::Client {
 public:
  void operator_called(dispatch::OperatorCall& call) override {
    if (auto known = counts().find(call.op().schema().name()); known != counts().end())
      flops_.fetch_add(known->second(call.arguments()), std::memory_order_relaxed);
    call.proceed();
  }
  const void* kind() const override { return &kKind; }
  std::int64_t flops() const { return flops_.load(std::memory_order_relaxed); }

 private:
  static constexpr char kKind = 0;
  std::atomic<std::int64_t> flops_{0};
};

}  // namespace

std::int64_t measure_flops(const std::function<void()>& run) {
  auto counter = std::make_shared<FlopCounter>();
  {
    dispatch::Activation counting(dispatch::Level::below_autograd, counter);
    run();
  }
  return counter->flops();
}

std::int64_t measure_flops(const std::function<at::Tensor()>& forward,
                           const std::function<at::Tensor(const at::Tensor&)>& loss) {
  return measure_flops([&] { loss(forward()).backward(); });
}

}  // namespace fabric
