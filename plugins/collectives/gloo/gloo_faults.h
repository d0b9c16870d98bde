#pragma once

#include <cstdint>
#include <string>

namespace fabric::collectives {

/// How often an exception left the handling of a connection in Gloo's own thread, which would have ended the process:
/// messages of other sizes than were waited for, say. The connection is closed instead; who waits for it looks here.
std::uint64_t gloo_faults() noexcept;
/// What the last one said; empty when there was none.
std::string last_gloo_fault();
/// Whether such exceptions are caught at all: they are where this library comes before LibTorch's in the search for
/// symbols, as it does unless a program loads it later.
bool catches_gloo_faults();

}  // namespace fabric::collectives
