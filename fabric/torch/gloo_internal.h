#pragma once

#include <chrono>
#include <functional>
#include <string>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace fabric::torch_gloo {

/// LibTorch's Gloo process group; connects to all ranks, at most the timeout. `address` is the one at which the other
/// ranks reach this one; empty: LibTorch chooses, by GLOO_SOCKET_IFNAME and the host's name. Throws what LibTorch
/// throws.
c10::intrusive_ptr<c10d::Backend> make(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                       std::chrono::milliseconds timeout, const std::string& address);
/// Whether make() returned it: a program may have put a backend of its own in Gloo's place.
bool is_ours(c10d::Backend& backend);
// The following take what make() returned.
/// Calls `started` with each all-reduce that is started; empty: no more.
void on_all_reduce(c10d::Backend& made, std::function<void(c10::intrusive_ptr<c10d::Work>)> started);
/// Whether operations are queued or under way; freeing it would wait for them.
bool is_busy(c10d::Backend& made);
/// Closes the connections to the other ranks, upon which operations that these wait in fail as well.
void close_connections(c10d::Backend& made);

}  // namespace fabric::torch_gloo
