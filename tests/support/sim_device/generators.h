#pragma once

#include <ATen/core/Generator.h>

namespace sim {

const at::Generator& default_generator(int device);
at::Generator new_generator(int device);
/// The CPU generator inside of one of ours, which draws the numbers; other generators as they are.
at::Generator inner_generator(const at::Generator& generator);

/// While it lives, kernels that ask for the CPU's default generator draw from this device's.
class LentGenerator {
 public:
  explicit LentGenerator(int device);
  ~LentGenerator();
  LentGenerator(const LentGenerator&) = delete;
  LentGenerator& operator=(const LentGenerator&) = delete;

 private:
  at::Generator lender_;
  c10::intrusive_ptr<c10::TensorImpl> cpu_state_;
};

}  // namespace sim
