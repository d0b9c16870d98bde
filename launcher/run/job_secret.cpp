#include "launcher/run/job_secret.h"

#include <string.h>

#include <cstdlib>

#include "launcher/run/slurm_secret.h"

namespace fabric::run {
namespace {

std::string config_folder(const EnvReader& env) {
  auto folder = env.get_or("XDG_CONFIG_HOME", "");
  if (folder.starts_with("/")) return folder;
  auto home = env.get_or("HOME", "");
  return home.starts_with("/") ? home + "/.config" : "";
}

}  // namespace

std::vector<std::string> loopback_addresses(const std::vector<std::string>& hosts) {
  std::vector<std::string> addresses;
  for (const auto& host : hosts) {
    bool is_v4 = host.starts_with("127.") && rendezvous::socket_address(host, 1).size > 0;
    if (host == "localhost")
      addresses.insert(addresses.end(), {"127.0.0.1", "::1"});
    else if (is_v4 || host == "::1")
      addresses.push_back(host);
    else
      return {};
  }
  return addresses;
}

void choose_secret(rendezvous::NodeSetup& setup, const Options& options, const EnvReader& env) {
  // Whoever names an interface wants it to be used, wherever the endpoint is.
  if (options.iface.empty() && options.local_addr.empty())
    setup.listen_addresses = loopback_addresses(setup.endpoint_hosts);
  if (!setup.listen_addresses.empty()) setup.own.addresses = setup.listen_addresses;
  setup.secret = env.get_or(kSecretVariable, "");
  if (setup.secret.empty() && !setup.listen_addresses.empty())
    setup.secret = rendezvous::secret_of_user(config_folder(env));
  else if (setup.secret.empty())
    share_secret_by_slurm(setup, env);
  setup.has_secret = !setup.secret.empty();
}

void wipe_secret() {
  char* value = std::getenv(kSecretVariable);
  if (!value) return;
  explicit_bzero(value, strlen(value));
  unsetenv(kSecretVariable);
}

}  // namespace fabric::run
