#include "launcher/run/hosts/examine_hosts.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

#include "launcher/os/ignored_signals.h"
#include "launcher/os/visible.h"
#include "launcher/run/hosts/host_group.h"

namespace fabric::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kAnswerLimit{10}, kEndLimit{5};

struct Request {
  std::vector<Host> hosts;
  SshSettings ssh;
  bool copies = false;
};

Request read_request(const std::vector<std::string>& words) {
  Request request;
  for (std::size_t i = 0; i < words.size(); ++i) {
    auto flag = words[i].substr(0, words[i].find('='));
    std::replace(flag.begin() + 1, flag.end(), '_', '-');
    if (flag == "--copy") {
      request.copies = true;
      continue;
    }
    const std::vector<std::string> flags{"--hosts", "-H", "--hostfile", "--ssh-args", "--copy"};
    if (std::find(flags.begin(), flags.end(), flag) == flags.end())
      throw ConfigError("fabric doctor: there is no " + words[i] + did_you_mean(flag, flags));
    bool is_one_word = words[i].find('=') != std::string::npos;
    if (!is_one_word && ++i == words.size()) throw ConfigError(flag + " needs a value behind it");
    auto value = is_one_word ? words[i].substr(words[i].find('=') + 1) : words[i];
    if (flag == "--ssh-args") request.ssh.words = split_words(value, flag);
    if (flag == "--hostfile") request.hosts = read_hostfile(value);
    if (flag == "--hosts" || flag == "-H") request.hosts = parse_hosts(value);
  }
  if (request.hosts.empty()) throw ConfigError("fabric doctor: give --hosts or --hostfile with the other flags");
  return request;
}

long long milliseconds_now() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

std::string present_folder_name() {
  char path[PATH_MAX];
  return getcwd(path, sizeof path) ? path : "/";
}

/// Asks all hosts that are ready for their time, and about this folder.
class Examination {
 public:
  Examination(const Request& request, Console& console)
      : group_(request.hosts, request.ssh, request.copies, console), asked_(request.hosts.size(), 0) {
    answered_ = asked_;
  }

  void run() {
    while (group_.count(Member::starting) > 0) step();
    auto end = HostGroup::Clock::now() + kAnswerLimit;
    while (are_some_silent() && HostGroup::Clock::now() < end) step();
    group_.hang_up();
    end = HostGroup::Clock::now() + kEndLimit;
    while (!group_.is_over()) {
      group_.wait(-1, milliseconds(100));
      group_.advance();
      if (HostGroup::Clock::now() > end) group_.kill_all();
    }
  }

  int print() {
    std::printf("%-24s %-6s %-8s %10s %5s %8s %-7s %s\n", "host", "ssh", "version", "processors", "GPUs", "clock",
                "folder", "program");
    bool is_good = true;
    for (std::size_t i = 0; i < group_.members().size(); ++i) is_good &= print_row(group_.members()[i], i);
    std::printf(is_good ? "\nA job would run on these hosts.\n" : "\nA job would NOT run on all of these hosts.\n");
    return is_good ? 0 : 1;
  }

 private:
  void step() {
    group_.wait(-1, milliseconds(500));
    group_.advance();
    group_.beat();
    auto& members = group_.members();
    for (std::size_t i = 0; i < members.size(); ++i) {
      if (members[i].state == Member::ready && asked_[i] == 0) {
        asked_[i] = milliseconds_now();
        members[i].process->send({"ask", present_folder_name()});
      }
      if (members[i].answer && answered_[i] == 0) answered_[i] = milliseconds_now();
    }
  }

  bool are_some_silent() {
    auto& members = group_.members();
    return std::any_of(members.begin(), members.end(),
                       [](const Member& member) { return member.state == Member::ready && !member.answer; });
  }

  bool print_row(const Member& member, std::size_t index) const {
    auto name = visible(member.host.name);
    // One that answered was then let go.
    if (!member.answer) {
      bool is_reached = member.hello.has_value() || member.problem.starts_with("there is no program");
      std::printf("%-24s %-6s\n", name.c_str(), is_reached ? "yes" : "no");
      std::istringstream lines(visible_lines(member.problem.empty() ? "it does not answer" : member.problem));
      for (std::string line; std::getline(lines, line);) std::printf("    %s\n", line.c_str());
      return false;
    }
    const auto& hello = *member.hello;
    // As if its answer had been on the way for half of the time.
    auto off = member.answer->milliseconds - (asked_[index] + answered_[index]) / 2;
    char clock[32];
    std::snprintf(clock, sizeof clock, "%+.2f s", static_cast<double>(off) / 1000);
    std::printf("%-24s %-6s %-8s %10d %5d %8s %-7s %s\n", name.c_str(), member.is_here ? "here" : "yes",
                visible(hello.version).c_str(), hello.processors, hello.gpus, clock,
                member.answer->has_folder ? "yes" : "NO", visible(hello.program).c_str());
    return member.answer->has_folder;
  }

  HostGroup group_;
  std::vector<long long> asked_, answered_;  // when; 0: not yet
};

}  // namespace

int examine_hosts(const std::vector<std::string>& words) {
  auto request = read_request(words);
  ignore_signals();
  Console console;
  Examination examination(request, console);
  examination.run();
  console.flush(seconds(1));
  return examination.print();
}

}  // namespace fabric::run
