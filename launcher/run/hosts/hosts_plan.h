#pragma once

#include <optional>
#include <string>
#include <vector>

#include <fabric/base/env_reader.h>

#include "launcher/rendezvous/settings.h"
#include "launcher/run/hosts/host_messages.h"
#include "launcher/run/options.h"

namespace fabric::run {

/// What each host of `fabric run --hosts` is told to run.
class HostsPlan {
 public:
  /// Takes the secret out of this process's environment, where there is one; else makes one up.
  HostsPlan(const Options& options, const EnvReader& env);
  bool has_leader() const { return leader_.has_value(); }
  /// This host is where the others meet: under the name that it has here, and at all its addresses.
  void lead(std::size_t index, const HostHello& hello);
  HostJob job_for(std::size_t index) const;

 private:
  const Options& options_;
  rendezvous::Timing timing_;
  std::string secret_, id_, folder_;
  std::optional<std::size_t> leader_;
  std::vector<std::string> endpoints_;
  int port_ = 0;
};

}  // namespace fabric::run
