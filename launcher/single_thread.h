#pragma once

namespace fabric {

/// Throws MisuseError, naming the other threads of this process, when there are any: a forked child would lack them.
/// `what` is the start method that needs this.
void require_single_thread(const char* what);

}  // namespace fabric
