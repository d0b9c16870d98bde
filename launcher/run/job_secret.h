#pragma once

#include <string>
#include <vector>

#include <fabric/base/env_reader.h>

#include "launcher/rendezvous/node.h"
#include "launcher/run/options.h"

namespace fabric::run {

/// The variable that hands a secret to the launchers of a job. Workers do not get it.
inline constexpr const char* kSecretVariable = "FABRIC_RDZV_TOKEN";

/// The addresses of this machine's loopback to which hosts lead that are nothing else ("127.0.0.1", "localhost"); empty
/// when one of them may lead elsewhere.
std::vector<std::string> loopback_addresses(const std::vector<std::string>& hosts);

/// Settles where the launchers listen and by what they know each other: the secret of kSecretVariable; else, where they
/// all are on this machine, the one of this user; else one that SLURM hands round; else none.
void choose_secret(rendezvous::NodeSetup& setup, const Options& options, const EnvReader& env);

/// Takes the secret out of this process's environment, which other processes of this user may read.
void wipe_secret();

}  // namespace fabric::run
