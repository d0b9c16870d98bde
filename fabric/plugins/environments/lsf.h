#pragma once

#include <string>

#include <fabric/plugins/environments/external_environment.h>

namespace fabric {

/// Tasks started by jsrun in an LSF job. The rank file's first line is the launch node and is dropped; the next host is
/// the main address; nodes are numbered by first occurrence. Port: MASTER_PORT or 10000 + job id % 1000, others
/// when that is taken.
class FABRIC_API LsfEnvironment : public ExternalEnvironment {
 public:
  /// `host` is this machine's name in the rank file; empty: asked from the system.
  explicit LsfEnvironment(const EnvReader& env = *process_env(), std::string host = "");
  static bool detect(const EnvReader& env);
};

}  // namespace fabric
