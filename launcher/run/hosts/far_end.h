#pragma once

#include <string>
#include <vector>

namespace fabric::run {

/// `fabric ssh-host MARK [FOLDER]`: what `fabric run --hosts` starts on each host. Says what it finds there, waits for
/// the job, which comes over stdin with its secret, runs this host's part of it, and ends with stdin. Returns the exit
/// code. FOLDER, into which this very program was copied, is removed first of all.
int serve_host(const std::vector<std::string>& words);

}  // namespace fabric::run
