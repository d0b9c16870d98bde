#pragma once

#include <cstddef>

namespace fabric {

/// As memcpy, for bytes that this core will not look at soon: they pass by its caches, so that lines which they replace
/// are not fetched first, and what the training works on stays. Another thread sees them after any synchronisation.
void stream_copy(void* to, const void* from, std::size_t bytes) noexcept;

}  // namespace fabric
