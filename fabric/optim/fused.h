#pragma once

#include <memory>

#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <fabric/export.h>

/// Drop-in replacements for torch::optim's SGD, Adam and AdamW whose step runs one kernel over all parameters of a
/// group instead of a dozen per parameter. They are those classes: options, groups, state, serialization and
/// `dynamic_cast` stay, the numbers agree to rounding, and either kind continues what the other saved. Parameters on
/// CPU and CUDA in 16, 32 and 64 bits take the fused way; when a group holds anything else (a sparse gradient, complex
/// numbers), that step is the plain one.
namespace fabric::optim {

using torch::optim::AdamOptions;
using torch::optim::AdamWOptions;
using torch::optim::SGDOptions;

namespace detail {
struct SgdLists;
struct AdamLists;
struct AdamWLists;
}  // namespace detail

class FABRIC_API SGD : public torch::optim::SGD {
 public:
  using torch::optim::SGD::SGD;
  at::Tensor step(LossClosure closure = nullptr) override;

 private:
  std::shared_ptr<detail::SgdLists> lists_;
};

class FABRIC_API Adam : public torch::optim::Adam {
 public:
  using torch::optim::Adam::Adam;
  at::Tensor step(LossClosure closure = nullptr) override;

 private:
  std::shared_ptr<detail::AdamLists> lists_;
};

class FABRIC_API AdamW : public torch::optim::AdamW {
 public:
  using torch::optim::AdamW::AdamW;
  at::Tensor step(LossClosure closure = nullptr) override;

 private:
  std::shared_ptr<detail::AdamWLists> lists_;
};

}  // namespace fabric::optim
