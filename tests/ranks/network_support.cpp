#include "tests/ranks/network_support.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

#include "tests/ranks/run_support.h"

namespace run_support {
namespace {

std::string number(int value) { return std::to_string(value); }

std::string namespace_of(pid_t pid) { return "/proc/" + number(pid) + "/ns/net"; }

pid_t hold_namespace() {
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char answer = unshare(CLONE_NEWNET) == 0 ? 'y' : 'n';
    [[maybe_unused]] auto written = write(ready[1], &answer, 1);
    for (;;) pause();
  }
  close(ready[1]);
  char answer = 'n';
  bool good = read(ready[0], &answer, 1) == 1 && answer == 'y';
  close(ready[0]);
  if (good) return pid;
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  throw std::runtime_error("no network namespace may be made here");
}

}  // namespace

std::string Network::why_not() {
  if (geteuid() != 0) return "network namespaces need root";
  try {
    Network network(1);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

Network::Network(int nodes, Kind kind) : kind_(kind) {
  for (int i = 0; i <= nodes; ++i) holders_.push_back(hold_namespace());
  std::string commands = "ip link add br0 type bridge && ip link set br0 up";
  for (int i = 0; i < nodes; ++i) {
    std::string port = "p";
    port += number(i);  // GCC 12 warns falsely of the sum of a literal and a string
    commands += " && ip link add " + port + " type veth peer name eth0 netns " + number(holders_[i + 1]) +
                " && ip link set " + port + " master br0 up";
  }
  in_namespace(0, commands);
  for (int i = 0; i < nodes; ++i)
    in_namespace(i + 1, "ip link set lo up && ip link set eth0 up && ip address add " + address(i) +
                            (kind == v4 ? "/24" : "/64 nodad") + " dev eth0");
}

Network::~Network() {
  for (pid_t pid : holders_) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
}

std::string Network::address(int node) const { return (kind_ == v4 ? "10.77.0." : "fd77::") + number(node + 1); }

std::string Network::why_no_hosts() {
  std::istringstream mounts(read_file("/proc/self/mountinfo"));
  for (std::string line, word; std::getline(mounts, line);) {
    std::istringstream words(line);
    for (int i = 0; i < 5; ++i) words >> word;
    if (word == "/") return "";
  }
  return "the root folder is no mount point (a chroot), so that no mount can be kept from the other processes";
}

std::function<void()> Network::enter(int node, const std::string& host, const std::string& hosts) const {
  auto place = namespace_of(holders_[node + 1]);
  return [place, host, hosts] {
    int fd = open(place.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) _exit(99);
    if (!host.empty() && (unshare(CLONE_NEWUTS) != 0 || sethostname(host.data(), host.size()) != 0)) _exit(98);
    if (hosts.empty()) return;
    char name[] = "/tmp/fabric_hosts_XXXXXX";
    int file = mkstemp(name);
    if (write(file, hosts.data(), hosts.size()) < 0 || unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount(name, "/etc/hosts", nullptr, MS_BIND, nullptr) != 0)
      _exit(97);
    close(file);
    unlink(name);
  };
}

void Network::cut(int node) { in_namespace(0, "ip link set p" + number(node) + " nomaster"); }

void Network::heal(int node) { in_namespace(0, "ip link set p" + number(node) + " master br0"); }

void Network::part(int one, int other) {
  in_namespace(one + 1, "ip route add blackhole " + address(other));
  in_namespace(other + 1, "ip route add blackhole " + address(one));
}

void Network::slow_down(int node) {
  in_namespace(node + 1, "tc qdisc add dev eth0 root tbf rate 48kbit burst 1600 latency 3s");
}

void Network::add_dead_interface(int node, const std::string& address) {
  in_namespace(
      node + 1,
      "ip link add dead0 type veth peer name dead1 && ip link set dead1 up && ip link set dead0 up && ip address add " +
          address + " dev dead0");
}

void Network::in_namespace(int holder, const std::string& commands) const {
  pid_t pid = fork();
  if (pid == 0) {
    int fd = open(namespace_of(holders_[holder]).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) _exit(99);
    std::string line = "exec 2>/dev/null; PATH=$PATH:/usr/sbin:/sbin; " + commands;
    execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  if (status != 0) throw std::runtime_error("no network of namespaces can be made here: failed: " + commands);
}

}  // namespace run_support
