#include "launcher/run/hosts/far_end.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>
#include <fabric/version.h>

#include "fabric/base/files_internal.h"
#include "fabric/base/ports_internal.h"
#include "launcher/os/exit_codes.h"
#include "launcher/os/visible.h"
#include "launcher/rendezvous/addresses.h"
#include "launcher/run/agent.h"
#include "launcher/run/hosts/host_messages.h"
#include "launcher/run/hosts/lifeline.h"
#include "launcher/run/job_secret.h"
#include "launcher/run/machine.h"

namespace fabric::run {
namespace {

int complain(const std::string& text, int code) {
  std::fprintf(stderr, "fabric: %s\n", visible_lines(text).c_str());
  return code;
}

void remove_copy(const std::string& folder) {
  unlink((folder + "/fabric").c_str());
  rmdir(folder.c_str());
}

/// Of this process, without what would be taken for flags: those of the job came with it, and all of them.
MapEnv variables_for(const HostJob& job) {
  std::map<std::string, std::string> values;
  for (char** entry = environ; entry && *entry; ++entry) {
    std::string text = *entry;
    auto equal = text.find('=', 1);
    if (equal != std::string::npos && !text.starts_with("PET_")) values[text.substr(0, equal)] = text.substr(equal + 1);
  }
  values[kSecretVariable] = job.secret;
  return MapEnv(values);
}

class FarEnd {
 public:
  explicit FarEnd(std::string mark) : mark_(std::move(mark)), lifeline_(take_stdin()) {}

  int run() {
    say_hello();
    auto job = wait_for_job();
    if (!job) return kLauncherFailed;
    int code = run_part(*job);
    say({"ended", std::to_string(code)});
    return code;
  }

 private:
  // Nobody else shall read from it, and a program that is asked for input finds none.
  static Descriptor take_stdin() {
    auto input = above_stdio(fcntl(0, F_DUPFD_CLOEXEC, 3), "the connection");
    dup2(open_dev_null().get(), 0);
    return input;
  }

  void say(const Packet& packet) const { write_all(2, packet_line(mark_, packet)); }

  void say_hello() {
    auto env = process_env();
    HostHello hello{.version = FABRIC_VERSION, .name = host_name(*env), .program = own_folder() + "/fabric"};
    port_.emplace();
    hello.port = port_->port();
    hello.processors = count_processors();
    hello.gpus = count_gpus(*env);
    hello.addresses = rendezvous::own_addresses("", "");
    say(to_packet(hello));
  }

  std::optional<HostJob> wait_for_job() {
    for (;;) {
      lifeline_.advance();
      while (auto packet = lifeline_.take_packet()) {
        if (packet->size() == 2 && packet->front() == "ask") answer(packet->back());
        if (auto job = read_job(*packet)) return job;
      }
      if (lifeline_.is_gone()) return std::nullopt;
      pollfd entry{lifeline_.fd(), POLLIN, 0};
      poll(&entry, 1, 60000);
    }
  }

  void answer(const std::string& folder) const {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    struct stat info {};
    bool has_folder = stat(folder.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
    say(to_packet(HostAnswer{now.tv_sec * 1000LL + now.tv_nsec / 1000000, has_folder}));
  }

  int run_part(const HostJob& job) {
    try {
      lifeline_.set_patience(std::chrono::milliseconds(static_cast<long long>(job.patience * 1000)));
      auto env = variables_for(job);
      auto options = parse_options(job.words, env).options;
      enter(job.folder, options);
      if (!job.hosts_rendezvous) port_.reset();
      if (job.port > 0) {
        options.endpoint_hosts = job.endpoints;
        options.endpoint_ports = {job.port};
        options.hosts_rendezvous = job.hosts_rendezvous;
        options.expected_nodes = job.expected;
        options.started_together = true;
      }
      return run_job(options, env, &lifeline_);
    } catch (const ConfigError& error) {
      return complain(error.what(), kUsage);
    } catch (const std::exception& error) {
      return complain(error.what(), kLauncherFailed);
    }
  }

  // --workdir is where ranks start; it serves the launcher, too, where the folder of the other end is missing.
  static void enter(const std::string& folder, const Options& options) {
    if (chdir(folder.c_str()) == 0) {
      setenv("PWD", folder.c_str(), 1);
      return;
    }
    int error = errno;
    if (options.workdir.starts_with("/") && chdir(options.workdir.c_str()) == 0) return;
    throw ConfigError("cannot enter " + folder + ": " + std::strerror(error) +
                      ". The job was started there, and starts there on each host; --workdir names another folder");
  }

  std::string mark_;
  Lifeline lifeline_;
  std::optional<PortReservation> port_;
};

}  // namespace

int serve_host(const std::vector<std::string>& words) {
  if (words.size() == 2) remove_copy(words[1]);
  if (words.empty() || words.size() > 2 || isatty(0))
    return complain("ssh-host is what `fabric run --hosts` starts on each host; see fabric run --help", kUsage);
  return FarEnd(words[0]).run();
}

}  // namespace fabric::run
