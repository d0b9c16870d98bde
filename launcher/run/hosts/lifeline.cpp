#include "launcher/run/hosts/lifeline.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace fabric::run {

Lifeline::Lifeline(Descriptor input)
    : input_(std::move(input)),
      epoll_(above_stdio(epoll_create1(EPOLL_CLOEXEC), "the lifeline")),
      timer_(above_stdio(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK), "the lifeline")) {
  sigemptyset(&brought_);
  for (int fd : {input_.get(), timer_.get()}) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) lose("its stdin is no connection");
  }
  if (!is_gone()) arm(patience_);
}

void Lifeline::set_patience(std::chrono::milliseconds patience) {
  patience_ = patience;
  if (!is_gone()) arm(patience_);
}

std::optional<Packet> Lifeline::take_packet() {
  if (packets_.empty()) return std::nullopt;
  auto packet = std::move(packets_.front());
  packets_.pop_front();
  return packet;
}

void Lifeline::advance() {
  if (is_gone()) return;
  std::uint64_t expirations = 0;
  bool is_time = read(timer_.get(), &expirations, sizeof expirations) > 0;
  // All that has come is read before anybody counts as silent: it may be us who slept.
  read_all();
  if (is_gone()) return;
  auto left = heard_ + patience_ - Clock::now();
  if (is_time && left <= left.zero())
    lose("the launcher that started this one is silent; its network may be cut");
  else if (is_time)
    arm(left);
}

// The descriptor is left as it is, for others may have it: sshd, or whoever made the pipe.
void Lifeline::read_all() {
  char buffer[65536];
  for (pollfd entry{input_.get(), POLLIN, 0}; !is_gone() && poll(&entry, 1, 0) > 0;) {
    ssize_t size = read(input_.get(), buffer, sizeof buffer);
    if (size < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (size <= 0) return lose("the connection to the launcher that started this one is closed");
    heard_ = Clock::now();
    reader_.feed({buffer, static_cast<std::size_t>(size)});
    while (auto packet = reader_.next()) take(std::move(*packet));
    if (reader_.is_broken()) return lose("what comes from the launcher that started this one is no packet");
  }
}

void Lifeline::take(Packet packet) {
  if (packet.empty() || packet[0] == "beat") return;
  if (packet[0] != "signal" || packet.size() != 2) {
    packets_.push_back(std::move(packet));
    return;
  }
  int number = std::atoi(packet[1].c_str());
  if (number <= 0 || number >= NSIG) return;
  sigaddset(&brought_, number);
  kill(getpid(), number);
}

void Lifeline::lose(const std::string& why) {
  why_ = why;
  // Closed, it would be readable for ever.
  for (int fd : {input_.get(), timer_.get()}) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  input_.reset();
}

void Lifeline::arm(std::chrono::nanoseconds left) {
  auto count = std::max<long long>(left.count(), 1000000);
  itimerspec time{};
  time.it_value.tv_sec = count / 1000000000;
  time.it_value.tv_nsec = count % 1000000000;
  timerfd_settime(timer_.get(), 0, &time, nullptr);
}

}  // namespace fabric::run
