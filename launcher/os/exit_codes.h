#pragma once

namespace fabric::run {

/// The launcher's own exit codes. Every other code is the first failed worker's, or 128 + n for signal n.
enum ExitCode : int {
  kUsage = 2,
  kDoNotRetry = 93,  // also what a worker ends with to ask for it
  kHang = 94,
  kRendezvous = 95,
  kNoProgress = 96,
  kRequireAll = 97,
  kLauncherFailed = 125,
  kCannotExecute = 126,
  kNotFound = 127,
};

}  // namespace fabric::run
