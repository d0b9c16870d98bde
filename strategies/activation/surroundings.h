#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <fabric/base/scope.h>
#include <fabric/dispatch/operator_hooks.h>

namespace fabric::detail::activation {

using Devices = std::vector<c10::Device>;
void add_once(Devices& devices, c10::Device device);

/// The generators that a region may draw from, and their state.
class RandomState {
 public:
  explicit RandomState(const Devices& devices);
  void put() const;
  /// Puts the state back until the scope closes; then what was there before.
  Scope restore() const;

 private:
  void remember(at::Generator generator);
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

/// A client that has no business in a second run.
struct FirstRunClient : dispatch::Client {};

/// Autocast, default dtype and what looks at operators, which the thread of a backward pass does not have.
class Surroundings {
 public:
  explicit Surroundings(const Devices& devices);
  Scope restore() const;
  /// Whether autocast is as it was.
  bool are_present() const;

 private:
  struct Cast {
    c10::DeviceType type;
    c10::ScalarType dtype;
    bool enabled;
  };
  void read();
  void write() const;
  std::vector<Cast> casts_;
  bool cache_ = false;
  c10::ScalarType dtype_;
  std::vector<std::shared_ptr<dispatch::Client>> clients_;
};

}  // namespace fabric::detail::activation
