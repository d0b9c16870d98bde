#include "launcher/run/hosts/host_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fabric/base/error.h>

#include "launcher/os/die_with.h"
#include "launcher/os/ignored_signals.h"
#include "launcher/os/signal_mask.h"
#include "launcher/start/command.h"

namespace fabric::run {
namespace {

constexpr std::size_t kMostNotes = 20, kUnit = 64 * 1024;

// Of the child, before the program: a session of its own, so that Ctrl-C in the terminal comes to us alone.
[[noreturn]] void become(const std::vector<std::string>& words, int input, int output, int error, pid_t parent) {
  auto arguments = exec_pointers(words);
  setsid();
  // The launcher itself ends its ranks in order when its stdin is closed; ssh just ends.
  bool is_ssh = words[0] == "ssh";
  if (is_ssh && !die_with(parent)) _exit(1);
  if (dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(error, 2) < 0) _exit(126);
  for (int number : kIgnoredSignals) signal(number, SIG_DFL);
  unblock_all();
  execvp(arguments[0], arguments.data());
  std::string why = words[0] + ": " + std::strerror(errno) + "\n";
  [[maybe_unused]] auto written = write(2, why.data(), why.size());
  _exit(127);
}

}  // namespace

HostProcess::HostProcess(std::string name, const HostStart& start, std::string mark, Console& console)
    : name_(std::move(name)), mark_(std::move(mark)), console_(console), program_(start.program) {
  output_.sink = &console_.out();
  error_.sink = &console_.error();
  error_.number = 2;
  for (auto* stream : {&output_, &error_})
    if (stream->sink->is_terminal()) stream->lines.keep_picture();
  unsent_ = start.first_line;
  this->start(start);
}

HostProcess::~HostProcess() {
  if (status_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void HostProcess::start(const HostStart& start) {
  auto input = make_pipe(), output = make_pipe(), error = make_pipe();
  // ssh and the far end's loop expect a stdin like everybody's.
  fcntl(input.read.get(), F_SETFL, 0);
  fcntl(input.write.get(), F_SETFL, O_NONBLOCK);
  pid_t self = getpid();
  pid_ = fork();
  if (pid_ == 0) become(start.words, input.read.get(), output.write.get(), error.write.get(), self);
  if (pid_ < 0) throw LaunchError("cannot start " + start.words[0] + " for " + name_ + ": " + std::strerror(errno));
  process_ = require_pidfd(pid_);
  input_ = std::move(input.write);
  output_.pipe = std::move(output.read);
  error_.pipe = std::move(error.read);
}

void HostProcess::send(const Packet& packet) {
  if (input_) unsent_ += framed(packet);
  write_some();
}

void HostProcess::beat() {
  if (unsent_.empty()) send({"beat"});
}

std::optional<Packet> HostProcess::take_packet() {
  if (packets_.empty()) return std::nullopt;
  auto packet = std::move(packets_.front());
  packets_.pop_front();
  return packet;
}

bool HostProcess::is_held_back() const {
  return (output_.pipe && output_.sink->is_full()) || (error_.pipe && error_.sink->is_full());
}

void HostProcess::add_to(std::vector<pollfd>& entries) const {
  for (const auto* stream : {&output_, &error_})
    if (stream->pipe && !stream->sink->is_full()) entries.push_back({stream->pipe.get(), POLLIN, 0});
  if (!status_) entries.push_back({process_.get(), POLLIN, 0});
  if (input_ && (!unsent_.empty() || sends_program_)) entries.push_back({input_.get(), POLLOUT, 0});
}

void HostProcess::advance() {
  reap();
  for (auto* stream : {&output_, &error_}) read_some(*stream);
  write_some();
}

void HostProcess::reap() {
  int status = 0;
  if (status_ || waitpid(pid_, &status, WNOHANG) != pid_) return;
  status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  input_.reset();
}

void HostProcess::write_some() {
  while (input_ && (!unsent_.empty() || sends_program_)) {
    auto bytes = unsent_.empty() ? std::string_view(*program_).substr(program_sent_, kUnit) : std::string_view(unsent_);
    ssize_t done = write(input_.get(), bytes.data(), bytes.size());
    if (done < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (done < 0) return hang_up();
    heard_ = Clock::now();
    if (!unsent_.empty()) {
      unsent_.erase(0, static_cast<std::size_t>(done));
    } else {
      program_sent_ += static_cast<std::size_t>(done);
      sends_program_ = program_sent_ < program_->size();
    }
  }
}

void HostProcess::read_some(Stream& stream) {
  static char buffer[kUnit];
  while (stream.pipe && !stream.sink->is_full()) {
    ssize_t size = read(stream.pipe.get(), buffer, sizeof buffer);
    if (size < 0 && errno == EINTR) continue;
    if (size > 0) {
      heard_ = Clock::now();
      take_lines(stream, {buffer, static_cast<std::size_t>(size)});
      continue;
    }
    // What a process that has ended wrote is all there by now, even if another one keeps the pipe open.
    bool has_ended = size == 0 || (errno == EAGAIN && status_);
    if (!has_ended) return;
    std::string rest;
    stream.lines.finish("", rest);
    stream.sink->show(&stream, "");
    show(stream, rest);
    stream.pipe.reset();
  }
}

void HostProcess::take_lines(Stream& stream, std::string_view text) {
  std::string lines;
  stream.lines.feed(text, "", lines);
  auto picture = shows_ ? stream.lines.picture() : "";
  if (picture.empty()) stream.sink->show(&stream, "");
  show(stream, lines);
  if (!picture.empty()) stream.sink->show(&stream, picture);
}

// Packets are taken out; what came before the far end reported goes to the notes.
void HostProcess::show(Stream& stream, const std::string& lines) {
  std::string shown;
  for (std::size_t begin = 0; begin < lines.size();) {
    auto end = std::min(lines.find('\n', begin), lines.size() - 1) + 1;
    auto line = std::string_view(lines).substr(begin, end - begin);
    begin = end;
    if (auto at = line.find(mark_ + " "); stream.number == 2 && at != line.npos) {
      auto bytes = line.substr(at, line.find_last_not_of("\r\n") + 1 - at);
      if (auto packet = read_packet_line(mark_, bytes)) {
        if (packet->size() == 1 && packet->front() == "send" && program_)
          sends_program_ = true;
        else
          packets_.push_back(std::move(*packet));
        line = line.substr(0, at);
      }
    }
    if (line.empty()) continue;
    if (!shows_) {
      notes_.emplace_back(line.substr(0, line.find_last_not_of("\r\n") + 1));
      if (notes_.size() > kMostNotes) notes_.pop_front();
      continue;
    }
    constexpr std::string_view kOwn = "fabric: ";
    bool is_launchers = names_lines_ && stream.number == 2 && line.starts_with(kOwn);
    if (is_launchers) shown += std::string(kOwn) + name_ + ": ";
    shown += is_launchers ? line.substr(kOwn.size()) : line;
  }
  stream.sink->add(shown);
}

void HostProcess::hang_up() {
  input_.reset();
  unsent_.clear();
  sends_program_ = false;
}

void HostProcess::kill_now() const {
  if (!status_) kill(pid_, SIGKILL);
}

std::string HostProcess::notes() const {
  std::string text;
  for (const auto& note : notes_)
    if (note.find_first_not_of(" \t") != note.npos) text += (text.empty() ? "" : "\n") + note;
  return text;
}

}  // namespace fabric::run
