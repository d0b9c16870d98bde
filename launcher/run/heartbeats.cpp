#include "launcher/run/heartbeats.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace fabric::run {
namespace {

std::chrono::nanoseconds in_clock(double seconds) {
  return std::chrono::nanoseconds(static_cast<long long>(std::min(seconds, 1e9) * 1e9));
}

std::string next_word(std::string_view& line) {
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  auto end = std::min(line.find(' '), line.size());
  std::string word(line.substr(0, end));
  line.remove_prefix(end);
  return word;
}

double positive(const std::string& text) {
  double value = std::atof(text.c_str());
  return std::isfinite(value) && value > 0 ? value : 0;
}

// What a worker calls its section is shown to people and must not move their cursor.
std::string printable(std::string text) {
  for (auto& letter : text)
    if (static_cast<unsigned char>(letter) < 32 || letter == 127) letter = '?';
  return text;
}

std::string in_words(double seconds, double limit) {
  char text[80];
  std::snprintf(text, sizeof text, "for %.1f s (limit %g s)", seconds, limit);
  return text;
}

}  // namespace

void Heartbeats::feed(std::string_view bytes, Clock::time_point now) {
  for (char letter : bytes) {
    if (letter == '\n') {
      take(partial_.size() > kLongestLine ? "beat" : std::string_view(partial_), now);
      partial_.clear();
    } else if (partial_.size() <= kLongestLine) {
      partial_ += letter;
    }
  }
}

void Heartbeats::take(std::string_view line, Clock::time_point now) {
  ++beats_;
  last_beat_ = now;
  auto word = next_word(line);
  if (word == "step") {
    char* end = nullptr;
    auto text = next_word(line);
    long long step = std::strtoll(text.c_str(), &end, 10);
    if (end == text.c_str() || step <= step_) return;
    step_ = step;
    last_step_ = now;
  } else if (word == "section") {
    section_ = printable(next_word(line));
    section_limit_ = positive(next_word(line));
  } else if (word == "end") {
    section_.clear();
    section_limit_ = 0;
  } else if (word == "timeout") {
    limits_.timeout = positive(next_word(line));
  } else if (word == "noretry") {
    forbids_retry_ = true;
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    why_ = printable(std::string(line));
  }
}

double Heartbeats::silence_limit() const {
  if (section_limit_ > 0) return section_limit_;
  if (limits_.timeout <= 0) return 0;
  return beats_ < 2 ? std::max(limits_.timeout, limits_.warmup) : limits_.timeout;
}

std::optional<Heartbeats::Clock::time_point> Heartbeats::deadline() const {
  std::optional<Clock::time_point> first;
  if (beats_ > 0 && silence_limit() > 0) first = last_beat_ + in_clock(silence_limit());
  if (step_ >= 0 && limits_.progress > 0) {
    auto progress = last_step_ + in_clock(limits_.progress);
    first = first ? std::min(*first, progress) : progress;
  }
  return first;
}

std::optional<std::string> Heartbeats::hang(Clock::time_point now) const {
  auto first = deadline();
  if (!first || now < *first) return std::nullopt;
  auto since = [&](Clock::time_point then) { return std::chrono::duration<double>(now - then).count(); };
  double limit = silence_limit();
  bool silent = limit > 0 && now >= last_beat_ + in_clock(limit);
  auto text = silent ? "gave no heartbeat " + in_words(since(last_beat_), limit)
                     : "stayed at step " + std::to_string(step_) + " " + in_words(since(last_step_), limits_.progress);
  if (!section_.empty()) text += ", in section '" + section_ + "'";
  return text;
}

}  // namespace fabric::run
