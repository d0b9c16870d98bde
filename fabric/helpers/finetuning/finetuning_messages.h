#pragma once

#include <functional>
#include <string>
#include <utility>

#include <fabric/base/log.h>

namespace fabric {

/// What a FinetuningScheduler has to say: on rank 0, from a level on, to the log or to a function of the caller's.
class FinetuningMessages {
 public:
  using Sink = std::function<void(log::Level level, const std::string& text)>;

  FinetuningMessages() = default;
  FinetuningMessages(log::Level threshold, bool speaks) : threshold_(threshold), speaks_(speaks) {}

  void set_sink(Sink sink) { sink_ = std::move(sink); }
  void debug(const std::string& text) const { write(log::Level::debug, text); }
  void info(const std::string& text) const { write(log::Level::info, text); }
  void warn(const std::string& text) const { write(log::Level::warn, text); }

 private:
  void write(log::Level level, const std::string& text) const {
    if (!speaks_ || level < threshold_) return;
    if (sink_)
      sink_(level, text);
    else
      log::write(level, text);
  }

  log::Level threshold_ = log::Level::info;
  bool speaks_ = true;
  Sink sink_;
};

}  // namespace fabric
