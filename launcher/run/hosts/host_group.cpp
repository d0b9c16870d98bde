#include "launcher/run/hosts/host_group.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include <fabric/base/error.h>
#include <fabric/version.h>

#include "fabric/base/files_internal.h"
#include "launcher/os/exit_codes.h"
#include "launcher/rendezvous/addresses.h"
#include "launcher/rendezvous/secret.h"
#include "launcher/start/command.h"

namespace fabric::run {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// From the last byte to or from a host that is not ready yet.
constexpr seconds kStartLimit{60};
/// All look-ups of names together; who is not found in that time is reached over ssh, as every other host.
constexpr seconds kResolveLimit{3};
constexpr const char* kSelf = "/proc/self/exe";

std::shared_ptr<const std::string> own_program() {
  std::ifstream file(kSelf, std::ios::binary);
  auto bytes = std::make_shared<std::string>((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes->empty()) throw LaunchError("--copy: cannot read this program's own file, /proc/self/exe");
  return bytes;
}

/// Where this program's file is; empty when it has none any more.
std::string findable_path() {
  auto path = own_command().path;
  return path == kSelf ? "" : path;
}

/// USER@HOST asks for ssh, whatever HOST is.
bool is_this_machine(const Host& host, HostGroup::Clock::time_point deadline) {
  if (host.name.find('@') != std::string::npos) return false;
  auto name = bare_name(host);
  std::vector<std::string> addresses;
  std::string problem;
  auto left = std::chrono::duration_cast<milliseconds>(deadline - HostGroup::Clock::now());
  if (rendezvous::socket_address(name, 1).size > 0)
    addresses = {name};
  else if (left.count() > 0)
    addresses = rendezvous::resolve(name, left, problem);
  return rendezvous::is_own_host(name, addresses);
}

// What ssh and the far shell said, and what can be done about it.
std::string problem_of_connection(const std::string& notes, const std::string& host, int code) {
  auto text = notes.empty() ? "ssh ended with code " + std::to_string(code) + " and without a word" : notes;
  if (code == kNotFound && notes.starts_with("ssh: ") && notes.find("resolve") == std::string::npos)
    return text + "; ssh is needed to reach other hosts (Debian: apt-get install openssh-client)";
  auto advice = advice_for(notes, host);
  return advice.empty() ? text : text + "\n  " + advice;
}

}  // namespace

HostGroup::HostGroup(const std::vector<Host>& hosts, const SshSettings& ssh, bool copies, Console& console)
    : mark_("fabric-" + rendezvous::in_hex(rendezvous::random_key()).substr(0, 16)), console_(console) {
  std::shared_ptr<const std::string> program;
  auto deadline = Clock::now() + kResolveLimit;
  auto path = findable_path();
  for (const auto& host : hosts) {
    HostStart start;
    if (is_this_machine(host, deadline)) {
      start.words = {kSelf, "ssh-host", mark_};
    } else {
      start.words = ssh_words(host, ssh);
      if (copies && !program) program = own_program();
      start.program = program;
      start.first_line = copies ? line_to_copy(mark_, program->size()) : line_to_find(mark_, path);
    }
    members_.push_back({host, std::make_unique<HostProcess>(host.name, start, mark_, console)});
    members_.back().is_here = start.words[0] == kSelf;
    if (hosts.size() > 1) members_.back().process->name_lines();
  }
}

int HostGroup::count(Member::State state) const {
  return static_cast<int>(
      std::count_if(members_.begin(), members_.end(), [&](const Member& member) { return member.state == state; }));
}

bool HostGroup::is_over() const {
  return std::all_of(members_.begin(), members_.end(), [](const Member& member) { return member.process->is_over(); });
}

void HostGroup::wait(int signals, milliseconds limit) {
  std::vector<pollfd> entries;
  if (signals >= 0) entries.push_back({signals, POLLIN, 0});
  for (const auto& member : members_) member.process->add_to(entries);
  for (auto* sink : {&console_.out(), &console_.error()})
    if (!sink->is_empty() && sink->can_poll()) entries.push_back({sink->fd(), POLLOUT, 0});
  poll(entries.data(), entries.size(), static_cast<int>(limit.count()));
}

void HostGroup::advance() {
  for (auto& member : members_) {
    member.process->advance();
    while (auto packet = member.process->take_packet()) take(member, *packet);
    check_end(member);
  }
}

void HostGroup::take(Member& member, const Packet& packet) {
  if (auto hello = read_hello(packet); hello && member.state == Member::starting) take_hello(member, *hello);
  if (auto answer = read_answer(packet)) member.answer = answer;
  if (packet.size() == 1 && packet[0] == "missing" && member.state == Member::starting)
    fail(member, "there is no program fabric, neither at " + (findable_path().empty() ? kSelf : findable_path()) +
                     ", as here, nor on the search path of the shell that ssh starts. Install it there, or let --copy "
                     "bring this one along");
  if (auto code = read_end(packet); code && member.state == Member::working) {
    member.state = Member::ended;
    member.code = *code;
  }
}

void HostGroup::take_hello(Member& member, const HostHello& hello) {
  member.hello = hello;
  if (hello.version != FABRIC_VERSION)
    return fail(member, "the program there, " + hello.program + ", is version " + hello.version + ", this one is " +
                            FABRIC_VERSION + "; launchers of one job are of one version. --copy brings this one along");
  member.process->begin_showing();
  member.state = Member::ready;
}

void HostGroup::check_end(Member& member) {
  auto& process = *member.process;
  if (member.state == Member::starting && !process.is_over() && Clock::now() > process.heard() + kStartLimit)
    fail(member, "no answer within " + std::to_string(kStartLimit.count()) + " s" +
                     (process.notes().empty() ? "" : "; it said: " + process.notes()));
  if (!process.is_over() || member.is_settled()) return;
  if (member.state == Member::starting)
    return fail(member, problem_of_connection(process.notes(), bare_name(member.host), process.code()));
  member.state = Member::lost;
  member.problem = "its connection is gone (ssh ended with code " + std::to_string(process.code()) + ")";
}

void HostGroup::fail(Member& member, const std::string& problem) {
  member.state = Member::failed;
  member.problem = problem;
  member.process->hang_up();
  if (Clock::now() > member.process->heard() + kStartLimit) member.process->kill_now();
}

void HostGroup::beat() {
  for (auto& member : members_)
    if (member.state == Member::ready || member.state == Member::working) member.process->beat();
}

void HostGroup::send_to_all(const Packet& packet) {
  for (auto& member : members_)
    if (member.state == Member::working) member.process->send(packet);
}

void HostGroup::hang_up() {
  for (auto& member : members_) member.process->hang_up();
}

void HostGroup::kill_all() {
  for (auto& member : members_) member.process->kill_now();
}

}  // namespace fabric::run
