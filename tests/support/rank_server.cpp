#include "tests/support/rank_server.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <filesystem>
#include <stdexcept>

extern char** environ;

namespace ranks {
namespace {

constexpr const char* kSocketVariable = "FABRIC_TEST_RANK_SERVER";

// --- messages: texts, each behind its length

using Message = std::vector<std::string>;

bool read_exactly(int socket, void* to, std::size_t size) {
  for (auto* at = static_cast<char*>(to); size > 0;) {
    ssize_t n = recv(socket, at, size, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

bool write_all(int socket, const std::string& bytes) {
  for (std::size_t done = 0; done < bytes.size();) {
    ssize_t n = ::send(socket, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

bool receive(int socket, Message& message) {
  std::size_t count = 0;
  if (!read_exactly(socket, &count, sizeof count)) return false;
  message.resize(count);
  for (auto& text : message) {
    std::size_t size = 0;
    if (!read_exactly(socket, &size, sizeof size)) return false;
    text.resize(size);
    if (!read_exactly(socket, text.data(), size)) return false;
  }
  return true;
}

bool send_message(int socket, const Message& message) {
  std::string bytes;
  auto append = [&](std::size_t number) { bytes.append(reinterpret_cast<const char*>(&number), sizeof number); };
  append(message.size());
  for (const auto& text : message) {
    append(text.size());
    bytes += text;
  }
  return write_all(socket, bytes);
}

// A request is the timeout, and for each rank the number of its variables, their names and values.
Message request(const std::vector<Variables>& ranks, double timeout_seconds) {
  Message message{std::to_string(timeout_seconds)};
  for (const auto& variables : ranks) {
    message.push_back(std::to_string(variables.size()));
    for (const auto& [name, value] : variables) message.insert(message.end(), {name, value});
  }
  return message;
}

/// Forks the ranks of a request. In a rank `processes` is empty.
std::vector<Process> fork_ranks(const Message& message) {
  std::vector<Process> processes;
  for (std::size_t at = 1; at < message.size();) {
    const std::size_t count = std::stoul(message[at++]);
    processes.push_back(fork_process());
    if (processes.back().pid == 0) {
      for (std::size_t i = 0; i < count; ++i) setenv(message[at + 2 * i].c_str(), message[at + 2 * i + 1].c_str(), 1);
      for (const auto& process : processes) close(process.output);
      return {};
    }
    at += 2 * count;
  }
  return processes;
}

bool has_threads() {
  auto tasks = std::filesystem::directory_iterator("/proc/self/task");
  return std::distance(begin(tasks), end(tasks)) != 1;
}

}  // namespace

RankServer::RankServer(const Variables& variables) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw std::runtime_error("socketpair failed");
  const std::string program = self();
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error("fork failed");
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != owner_) _exit(125);
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    setenv(kSocketVariable, std::to_string(dup(ends[1])).c_str(), 1);  // the copy outlives the start of the program
    execl(program.c_str(), program.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  socket_ = ends[0];
}

RankServer::~RankServer() {
  if (getpid() != owner_) return;  // a copy in a process that a test forked
  close(socket_);
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::vector<Outcome> RankServer::run(const std::vector<Variables>& ranks, double timeout_seconds) {
  Message message = request(ranks, timeout_seconds);
  pollfd answer{socket_, POLLIN, 0};
  // The server ends the ranks at the timeout. It has to be loaded first, which takes a while on a busy machine.
  const int patience = static_cast<int>((timeout_seconds + 60) * 1000);
  if (!send_message(socket_, message) || poll(&answer, 1, patience) != 1 || !receive(socket_, message) ||
      message.size() != 2 * ranks.size())
    throw std::runtime_error("the process that the ranks are forked from is gone");
  std::vector<Outcome> outcomes;
  for (std::size_t i = 0; i < message.size(); i += 2) outcomes.push_back({std::stoi(message[i]), message[i + 1]});
  return outcomes;
}

RankServer& rank_server(const Variables& variables) {
  struct Kept {
    Message key;
    std::unique_ptr<RankServer> server;
  };
  static std::deque<Kept> kept;
  Message key{std::filesystem::current_path()};
  for (char** variable = environ; *variable != nullptr; ++variable) key.push_back(*variable);
  for (const auto& [name, value] : variables) key.push_back(name + "=" + value);
  auto found = std::find_if(kept.begin(), kept.end(), [&](const Kept& one) { return one.key == key; });
  if (found == kept.end()) {
    if (kept.size() == 3) kept.pop_front();  // each takes memory
    kept.push_back({std::move(key), std::make_unique<RankServer>(variables)});
    found = std::prev(kept.end());
  }
  return *found->server;
}

void serve_if_asked() {
  const char* number = getenv(kSocketVariable);
  if (number == nullptr) return;
  const int socket = std::stoi(number);
  unsetenv(kSocketVariable);
  const bool can_fork = !has_threads();  // a thread is not there after a fork, and what it held is lost
  for (Message message; receive(socket, message);) {
    auto processes = fork_ranks(message);
    if (processes.empty()) {
      close(socket);
      if (!can_fork) execl(self().c_str(), self().c_str(), nullptr);
      return;
    }
    Message answer;
    for (auto& outcome : wait_all(std::move(processes), std::stod(message[0])))
      answer.insert(answer.end(), {std::to_string(outcome.exit_code), std::move(outcome.output)});
    if (!send_message(socket, answer)) break;
  }
  _exit(0);
}

}  // namespace ranks
