#pragma once

namespace sim {

/// Reports accesses of the host to device memory, and to pinned memory that a copy owns, and lets the program go on.
/// Other faults are left to who was there before. May be called again where a test's frame took the signal.
void watch_faults();
/// Closes the pages of device memory that were opened by faults.
void close_opened_pages();

}  // namespace sim
