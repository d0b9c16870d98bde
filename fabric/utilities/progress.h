#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include <fabric/export.h>

namespace fabric {

/// What a progress bar shows, and where.
struct ProgressOptions {
  /// What is shown: a bar that is redrawn in place, one line every `line_seconds`, or nothing. `automatic` is a bar on
  /// a terminal and nothing elsewhere, so that log files stay clean.
  enum class Mode { automatic, bar, lines, off };
  Mode mode = Mode::automatic;
  double redraw_seconds = 0.1;
  double line_seconds = 10;
  /// Where it is written; 2 is stderr.
  int fd = 2;
};

/// How far a loop has come: done, total, rate and time left. A bar takes one line of the terminal: what does not fit is
/// cut off. While nothing is due, `advance` costs one read of the
/// clock; switched off it costs one comparison. Not thread-safe.
class FABRIC_API Progress {
 public:
  /// Without a total the share and the time left are not shown. `enabled` is false on ranks that show nothing.
  explicit Progress(std::string label, std::optional<std::size_t> total = std::nullopt, bool enabled = true,
                    ProgressOptions options = {});
  /// Writes the final state.
  ~Progress();
  Progress(Progress&& other) noexcept;
  Progress& operator=(Progress&&) = delete;

  void advance(std::size_t count = 1) {
    done_ += count;
    if (active_ && std::chrono::steady_clock::now() >= due_) show();
  }
  /// Text after the numbers, for instance the loss; shown with the next redraw.
  void set_note(std::string note) { note_ = std::move(note); }
  /// Writes the final state and a line end. Later calls do nothing.
  void finish() noexcept;
  std::size_t done() const { return done_; }

 private:
  using Clock = std::chrono::steady_clock;
  void show();
  std::string line(Clock::time_point now) const;
  void write(const std::string& text) noexcept;

  std::string label_;
  std::string note_;
  std::optional<std::size_t> total_;
  ProgressOptions options_;
  std::size_t done_ = 0;
  bool active_ = false;
  bool utf8_ = false;
  Clock::time_point start_;
  Clock::time_point due_;
};

namespace detail {

template <class Range>
std::optional<std::size_t> size_of(const Range& range) {
  if constexpr (requires { range.has_size(); }) {  // a loader over a stream has none
    if (!range.has_size()) return std::nullopt;
  }
  if constexpr (requires { std::optional<std::size_t>(range.size()); })
    return range.size();
  else if constexpr (std::is_array_v<Range>)
    return std::extent_v<Range>;
  else
    return std::nullopt;
}

}  // namespace detail

/// A range that tells a Progress about each element it hands out. Made by fabric::progress.
template <class Range>
class ProgressRange {
  using Inner = std::remove_reference_t<Range>;

 public:
  ProgressRange(Range&& range, std::string label, bool enabled, ProgressOptions options)
      : range_(std::forward<Range>(range)), progress_(std::move(label), detail::size_of(range_), enabled, options) {}

  template <class Iterator>
  class Step {
   public:
    Step(Iterator inner, Progress* progress) : inner_(std::move(inner)), progress_(progress) {}
    decltype(auto) operator*() { return *inner_; }
    Step& operator++() {
      ++inner_;
      progress_->advance();
      return *this;
    }
    template <class End>
    bool operator!=(const End& end) {
      return inner_ != end;
    }

   private:
    Iterator inner_;
    Progress* progress_;
  };

  auto begin() {
    using std::begin;
    return Step(begin(range_), &progress_);
  }
  auto end() {
    using std::end;
    return end(range_);
  }
  Progress& bar() { return progress_; }

 private:
  Range range_;
  Progress progress_;
};

/// for (auto& batch : fabric::progress(loader, "epoch 3")): any range; a temporary is kept alive by the loop.
template <class Range>
ProgressRange<Range> progress(Range&& range, std::string label = "", bool enabled = true,
                              ProgressOptions options = {}) {
  return ProgressRange<Range>(std::forward<Range>(range), std::move(label), enabled, options);
}

}  // namespace fabric
