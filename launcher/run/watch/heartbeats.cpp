#include "launcher/run/watch/heartbeats.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>

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
  is_watched_ = true;
  last_beat_ = now;
  auto word = next_word(line);
  // Sections may come and go before the first step: they do not use up the time for warming up.
  if (word != "section" && word != "end" && word != "reset" && word != "timeout") ++beats_;
  if (word == "step") {
    char* end = nullptr;
    auto text = next_word(line);
    long long step = std::strtoll(text.c_str(), &end, 10);
    if (end == text.c_str() || step <= step_) return;
    step_ = step;
    last_step_ = now;
  } else if (word == "section") {
    auto name = printable(next_word(line));
    if (sections_.size() < kDeepest) sections_.push_back({name, positive(next_word(line)), now});
  } else if (word == "end") {
    leave(printable(next_word(line)));
  } else if (word == "reset") {
    sections_.clear();
  } else if (word == "timeout") {
    limits_.timeout = positive(next_word(line));
  } else if (word == "noretry") {
    forbids_retry_ = true;
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    why_ = printable(std::string(line));
  }
}

void Heartbeats::leave(const std::string& name) {
  auto found = std::find_if(sections_.rbegin(), sections_.rend(),
                            [&](const Section& section) { return name.empty() || section.name == name; });
  if (found != sections_.rend()) sections_.erase(std::prev(found.base()), sections_.end());
}

const Heartbeats::Section* Heartbeats::limited_section() const {
  auto found =
      std::find_if(sections_.rbegin(), sections_.rend(), [](const Section& section) { return section.limit > 0; });
  return found == sections_.rend() ? nullptr : &*found;
}

double Heartbeats::silence_limit() const {
  if (limits_.timeout <= 0 || limited_section()) return 0;
  return beats_ < 2 ? std::max(limits_.timeout, limits_.warmup) : limits_.timeout;
}

std::optional<Heartbeats::Clock::time_point> Heartbeats::deadline() const {
  std::optional<Clock::time_point> first;
  auto consider = [&](Clock::time_point time) { first = first ? std::min(*first, time) : time; };
  if (const auto* section = limited_section()) consider(section->entered + in_clock(section->limit));
  if (is_watched_ && silence_limit() > 0) consider(last_beat_ + in_clock(silence_limit()));
  if (step_ >= 0 && limits_.progress > 0) consider(last_step_ + in_clock(limits_.progress));
  return first;
}

std::optional<std::string> Heartbeats::hang(Clock::time_point now) const {
  auto first = deadline();
  if (!first || now < *first) return std::nullopt;
  auto since = [&](Clock::time_point then) { return std::chrono::duration<double>(now - then).count(); };
  const auto* limited = limited_section();
  std::string text;
  if (limited && now >= limited->entered + in_clock(limited->limit))
    text = "did not leave section '" + limited->name + "' " + in_words(since(limited->entered), limited->limit);
  else if (silence_limit() > 0 && now >= last_beat_ + in_clock(silence_limit()))
    text = "gave no heartbeat " + in_words(since(last_beat_), silence_limit());
  else
    text = "stayed at step " + std::to_string(step_) + " " + in_words(since(last_step_), limits_.progress);
  if (!sections_.empty() && &sections_.back() != limited) text += ", in section '" + sections_.back().name + "'";
  return text;
}

}  // namespace fabric::run
