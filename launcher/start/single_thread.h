#pragma once

namespace fabric {

/// True when a fork of this process would be as good as the process itself: it has one thread, and no CUDA driver,
/// whose state a fork cannot use.
bool can_be_copied();
/// Throws MisuseError, naming the other threads of this process, when there are any: a forked child would lack them.
/// `what` is the start method that needs this.
void require_single_thread(const char* what);

}  // namespace fabric
