#pragma once

#include <chrono>

#include <c10/util/intrusive_ptr.h>

#include <fabric/base/rank_info.h>

namespace c10d {
class Store;
}

namespace fabric::collectives {

/// A client of the LibTorch store that a launcher such as torchrun serves at main_address:main_port. Throws
/// TimeoutError, CollectiveError.
c10::intrusive_ptr<c10d::Store> connect_to_tcp_store(const RankInfo& ranks, std::chrono::milliseconds timeout);

}  // namespace fabric::collectives
