#pragma once

#include <string>
#include <vector>

#include <ATen/core/dispatch/Dispatcher.h>

namespace sim {

/// What has to be known of an operator to run it; read from its schema once.
struct OperatorInfo {
  std::string name;                     // "aten::add.Tensor"
  std::vector<bool> writes;             // by argument
  std::vector<int> result_is_argument;  // by result: the argument that it is, or -1
  int generator = -1;                   // the argument that is one
  bool draws_from_default = false;      // random numbers without such an argument
  bool is_view = false;                 // touches no element
  bool gives_number = false;            // to the host, which so waits
  bool waits_for_shape = false;         // the result's shape depends on the numbers: a GPU's host waits for it
  bool takes_host_tensors = false;      // beside those of the device

  static const OperatorInfo& of(const c10::OperatorHandle& op);
};

/// Arguments that kernels of the CPU write although their schemas do not say so, by operator. What is missing here is
/// found by audit_schemas().
const std::vector<std::pair<std::string, std::vector<std::string>>>& unadmitted_writes();

}  // namespace sim
