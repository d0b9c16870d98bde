#include <fabric/utilities/progress.h>

#include <unistd.h>

#include <algorithm>

#include "fabric/base/terminal_row_internal.h"
#include "fabric/utilities/terminal_internal.h"

namespace fabric {
namespace {

std::string bar_text(double share, std::size_t cells, bool utf8) {
  std::string text = utf8 ? "▕" : "|";
  auto eighths = static_cast<std::size_t>(std::clamp(share, 0.0, 1.0) * static_cast<double>(cells) * 8);
  static const char* const kParts[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  for (std::size_t cell = 0; cell < cells; ++cell) {
    std::size_t filled = std::min<std::size_t>(8, eighths - std::min(eighths, cell * 8));
    if (utf8)
      text += filled == 8 ? "█" : kParts[filled];
    else
      text += filled >= 4 ? '#' : ' ';
  }
  return text + (utf8 ? "▏" : "|");
}

std::string speed_text(double per_second) {
  // Slow loops are easier to read as seconds a step.
  if (per_second > 0 && per_second < 1) return terminal::short_number(1 / per_second) + " s/it";
  return terminal::short_number(per_second) + " it/s";
}

}  // namespace

Progress::Progress(std::string label, std::optional<std::size_t> total, bool enabled, ProgressOptions options)
    : label_(std::move(label)), total_(total), options_(options), start_(Clock::now()), due_(start_) {
  if (options_.mode == ProgressOptions::Mode::automatic)
    options_.mode = terminal::shows_pictures(options_.fd) ? ProgressOptions::Mode::bar : ProgressOptions::Mode::off;
  active_ = enabled && options_.mode != ProgressOptions::Mode::off;
  if (!active_) return;
  utf8_ = terminal::utf8();
  if (options_.mode == ProgressOptions::Mode::bar)
    show();
  else
    due_ = start_ + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options_.line_seconds));
}

Progress::Progress(Progress&& other) noexcept
    : label_(std::move(other.label_)),
      note_(std::move(other.note_)),
      total_(other.total_),
      options_(other.options_),
      done_(other.done_),
      active_(std::exchange(other.active_, false)),
      utf8_(other.utf8_),
      start_(other.start_),
      due_(other.due_) {}

Progress::~Progress() { finish(); }

void Progress::show() {
  auto now = Clock::now();
  bool bar = options_.mode == ProgressOptions::Mode::bar;
  write(bar ? '\r' + line(now) + "\x1b[K" : line(now) + "\n");
  if (bar && options_.fd == 2) progress_row_is_drawn = true;
  double pause = bar ? options_.redraw_seconds : options_.line_seconds;
  due_ = now + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(pause));
}

void Progress::finish() noexcept {
  if (!active_) return;
  active_ = false;
  try {
    bool bar = options_.mode == ProgressOptions::Mode::bar;
    write(bar ? '\r' + line(Clock::now()) + "\x1b[K\n" : line(Clock::now()) + "\n");
    if (bar && options_.fd == 2) progress_row_is_drawn = false;
  } catch (const std::exception&) {
    // Out of memory while a bar is drawn: nothing worth an error.
  }
}

std::string Progress::line(Clock::time_point now) const {
  double seconds = std::chrono::duration<double>(now - start_).count();
  double rate = seconds > 0 ? static_cast<double>(done_) / seconds : 0;
  std::string before = label_.empty() ? "" : label_ + " ";
  std::string after = std::to_string(done_);
  if (total_) after += '/' + std::to_string(*total_);
  after += " [" + terminal::clock_text(seconds);
  if (total_ && done_ < *total_)
    after += '<' + (rate > 0 ? terminal::clock_text(static_cast<double>(*total_ - done_) / rate) : std::string("?"));
  after += ", " + speed_text(rate) + "]";
  if (!note_.empty()) after += " " + note_;
  const bool bar = options_.mode == ProgressOptions::Mode::bar;
  // A line that wraps cannot be redrawn in place, and some terminals wrap when their last column is written.
  const int room = bar ? std::max(terminal::columns(options_.fd) - 1, 0) : 0;
  auto fitted = [&](const std::string& text) { return bar ? terminal::cut(text, room) : text; };
  if (!total_) return fitted(before + after);

  double share = *total_ == 0 ? 1 : static_cast<double>(done_) / static_cast<double>(*total_);
  char percent[16];
  std::snprintf(percent, sizeof percent, "%3d%% ", static_cast<int>(share * 100));
  before += percent;
  auto taken = static_cast<int>(terminal::width(before) + terminal::width(after)) + 3;  // the bar's ends and a space
  int cells = std::clamp(room - taken, 0, 40);
  return fitted(cells < 3 ? before + after : before + bar_text(share, cells, utf8_) + " " + after);
}

void Progress::write(const std::string& text) noexcept {
  // A reader that went away or a full pipe must not stop the training: what cannot be written is dropped.
  [[maybe_unused]] auto written = ::write(options_.fd, text.data(), text.size());
}

}  // namespace fabric
