#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <fabric/base/rank_info.h>

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace fabric::collectives {

/// What every maker of a LibTorch backend gets.
struct BackendRequest {
  c10::intrusive_ptr<c10d::Store> store;  // keys of this group only
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds timeout{};
  c10::Device device = c10::kCPU;
  std::string name;
  RankInfo ranks;
};

/// Name and type of libtorchfabric_cuda's maker of NCCL backends.
inline constexpr const char* kMakeNccl = "fabric_make_nccl_backend";
using MakeNccl = void (*)(const BackendRequest& request, c10::intrusive_ptr<c10d::Backend>& made);

}  // namespace fabric::collectives
