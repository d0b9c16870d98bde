#include "tests/ranks/ssh_support.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace ssh_support {
namespace {

constexpr const char* kDaemon = "/usr/sbin/sshd";
constexpr double kPatience = 20;

void shell(const std::string& line) {
  if (std::system((line + " >/dev/null 2>&1").c_str()) != 0) throw std::runtime_error("failed: " + line);
}

// Which network a process is in; empty when that is not told.
std::string network_of(const std::string& pid) {
  char name[256];
  ssize_t size = readlink(("/proc/" + pid + "/ns/net").c_str(), name, sizeof name);
  return std::string(name, size > 0 ? static_cast<std::size_t>(size) : 0);
}

bool listens(pid_t daemon) {
  for (const char* table : {"tcp", "tcp6"}) {
    std::ifstream lines("/proc/" + std::to_string(daemon) + "/net/" + table);
    for (std::string line; std::getline(lines, line);)
      if (line.find(":0016 ") < 50 && line.find(" 0A ") != std::string::npos) return true;
  }
  return false;
}

}  // namespace

std::string Machines::why_not() {
  if (access(kDaemon, X_OK) != 0) return std::string(kDaemon) + " is missing (Debian: openssh-server)";
  if (std::system("command -v ssh ssh-keygen >/dev/null") != 0) return "ssh is missing (Debian: openssh-client)";
  return run_support::Network::why_not();
}

Machines::Machines(int hosts) : hosts_(hosts), network_(hosts + 1) {
  // Where the daemon's half without rights lives; a system with a running sshd has it.
  mkdir("/run/sshd", 0755);
  shell("ssh-keygen -q -t ed25519 -N '' -C key -f " + folder_ / "key");
  std::ofstream(folder_ / "ssh_config") << "Host *\n  User root\n  IdentityFile " << folder_ / "key"
                                        << "\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile "
                                        << folder_ / "known_hosts"
                                        << "\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
                                        << "  SendEnv FABRIC_TEST_MARK TMPDIR\n";
  std::ofstream known(folder_ / "known_hosts");
  for (int host = 0; host < hosts; ++host) {
    auto key = folder_ / ("host_key" + std::to_string(host));
    shell("ssh-keygen -q -t ed25519 -N '' -C host -f " + key);
    known << address(host) << " " << run_support::read_file(key + ".pub");
  }
  known.close();
  for (int host = 0; host < hosts; ++host) start(host);
}

Machines::~Machines() {
  for (int machine = 0; machine < hosts_; ++machine)
    for (pid_t pid : processes_on(machine)) kill(pid, SIGKILL);
  for (pid_t pid : daemons_) waitpid(pid, nullptr, 0);
}

void Machines::start(int host) {
  auto number = std::to_string(host), settings = folder_ / ("sshd_config" + number);
  std::filesystem::copy_file(folder_ / "key.pub", folder_ / ("authorized" + number));
  std::ofstream(settings) << "Port 22\nHostKey " << folder_ / ("host_key" + number) << "\nAuthorizedKeysFile "
                          << folder_ / ("authorized" + number)
                          << "\nPidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
                          << "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
                          << "AcceptEnv FABRIC_TEST_MARK TMPDIR\nLogLevel ERROR\n";
  auto enter_machine = enter(host);
  pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (const char* name : {"FABRIC_TEST_MARK", "TMPDIR"}) unsetenv(name);
    if (!freopen("/dev/null", "w", stderr)) _exit(1);
    enter_machine();
    execl(kDaemon, kDaemon, "-D", "-e", "-f", settings.c_str(), nullptr);
    _exit(127);
  }
  daemons_.push_back(pid);
  for (double limit = run_support::now() + kPatience; !listens(pid); usleep(10000))
    if (run_support::now() > limit || kill(pid, 0) != 0) throw std::runtime_error("sshd does not start");
}

std::vector<std::string> Machines::flags() const { return {"--ssh-args", "-F " + folder_ / "ssh_config"}; }

std::function<void()> Machines::enter(int machine) const {
  return network_.enter(machine, machine == hosts_ ? "desk" : "m" + std::to_string(machine));
}

void Machines::refuse_key(int host) const { std::ofstream(folder_ / ("authorized" + std::to_string(host))) << ""; }

void Machines::forget_host(int host) const {
  auto known = run_support::read_file(folder_ / "known_hosts");
  auto at = known.find(address(host) + " ");
  known.erase(at, known.find('\n', at) + 1 - at);
  std::ofstream(folder_ / "known_hosts") << known;
}

void Machines::lose(int host) {
  network_.cut(host);
  for (pid_t pid : processes_on(host)) kill(pid, SIGKILL);
}

void Machines::kill_connections(int host) const {
  for (pid_t pid : processes_on(host)) {
    bool is_sshd = run_support::read_file("/proc/" + std::to_string(pid) + "/comm") == "sshd\n";
    if (is_sshd && pid != daemons_[static_cast<std::size_t>(host)]) kill(pid, SIGKILL);
  }
}

// The process that holds the network open is none of the machine's.
std::vector<pid_t> Machines::processes_on(int machine) const {
  std::vector<pid_t> found;
  auto network = network_of(std::to_string(network_.holder(machine)));
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    auto name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos || network_of(name) != network) continue;
    if (std::atoi(name.c_str()) != network_.holder(machine)) found.push_back(std::atoi(name.c_str()));
  }
  return found;
}

}  // namespace ssh_support
