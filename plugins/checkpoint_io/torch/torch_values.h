#pragma once

#include <string>

#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

#include "plugins/checkpoint_io/torch/torch_host.h"

namespace fabric::checkpoint {

/// Values of the nodes below `key` ("" for all of `root`), and which Python objects were passed over. Throws
/// CheckpointKeyError when there is no such entry, CheckpointCorrupt when a small file would grow into a huge tree.
/// `whole`: a Python object among the values is an error instead.
CheckpointPart values_of(const PickleReader& pickle, const TorchHost& host, PickleReader::Id root,
                         const std::string& key, bool whole);

}  // namespace fabric::checkpoint
