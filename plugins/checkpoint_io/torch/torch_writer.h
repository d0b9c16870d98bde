#pragma once

#include <filesystem>

#include <fabric/base/value.h>

namespace fabric::checkpoint {

/// A file that Python's torch.load reads, also with weights_only=True. Maps become dicts; in an optimizer's state the
/// numbers of the parameters become integers again, which is what Python's optimizers look for.
void write_torch(const Value& checkpoint, const std::filesystem::path& path);

}  // namespace fabric::checkpoint
