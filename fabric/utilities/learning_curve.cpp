#include <fabric/utilities/learning_curve.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

#include "fabric/utilities/curve_svg_internal.h"
#include "fabric/utilities/terminal_internal.h"

namespace fabric {
namespace {

using terminal::short_number;

// The ends of the drawn points; empty ranges are widened so that a flat line lies in the middle.
struct Box {
  double x0 = std::numeric_limits<double>::infinity(), x1 = -x0, y0 = x0, y1 = -x0;
  explicit Box(const std::vector<LearningCurve::Point>& points) {
    for (const auto& p : points) {
      x0 = std::min(x0, p.x), x1 = std::max(x1, p.x);
      y0 = std::min(y0, p.y), y1 = std::max(y1, p.y);
    }
  }
};

std::vector<LearningCurve::Point> finite_points(const LearningCurve::Series& series) {
  auto points = series.points;
  std::erase_if(points, [](const auto& p) { return !std::isfinite(p.x) || !std::isfinite(p.y); });
  std::stable_sort(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.x < b.x; });
  return points;
}

// A canvas of dots; a text cell holds 2 × 4 of them (Braille), or one where only ASCII is shown.
class Canvas {
 public:
  Canvas(int columns, int lines, bool ascii)
      : ascii_(ascii),
        columns_(columns),
        width_(ascii ? columns : 2 * columns),
        height_(ascii ? lines : 4 * lines),
        dots_(static_cast<std::size_t>(width_) * height_) {}
  int width() const { return width_; }
  int height() const { return height_; }

  void line(int x0, int y0, int x1, int y1) {
    int steps = std::max({std::abs(x1 - x0), std::abs(y1 - y0), 1});
    for (int i = 0; i <= steps; ++i) {
      int x = x0 + static_cast<int>(std::lround(double(x1 - x0) * i / steps));
      int y = y0 + static_cast<int>(std::lround(double(y1 - y0) * i / steps));
      dots_[static_cast<std::size_t>(y) * width_ + x] = true;
    }
  }

  std::string row(int row) const {
    std::string text;
    for (int column = 0; column < columns_; ++column) {
      if (ascii_) {
        text += dot(column, row) ? '*' : ' ';
        continue;
      }
      static constexpr int kBits[4][2] = {{0, 3}, {1, 4}, {2, 5}, {6, 7}};
      unsigned bits = 0;
      for (int y = 0; y < 4; ++y)
        for (int x = 0; x < 2; ++x)
          if (dot(2 * column + x, 4 * row + y)) bits |= 1u << kBits[y][x];
      unsigned code = 0x2800 + bits;
      if (bits == 0)
        text += ' ';
      else
        text += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F))};
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    return text;
  }

 private:
  bool dot(int x, int y) const { return dots_[static_cast<std::size_t>(y) * width_ + x]; }
  bool ascii_;
  int columns_, width_, height_;
  std::vector<bool> dots_;
};

std::string padded(const std::string& text, std::size_t width) {
  return std::string(width - std::min(width, text.size()), ' ') + text;
}

std::string panel(const LearningCurve::Series& series, const LearningCurve::TextOptions& options) {
  auto points = finite_points(series);
  if (points.empty()) return series.name + ": no finite value\n";
  Box box(points);
  auto by_y = [](const auto& a, const auto& b) { return a.y < b.y; };
  auto low = std::min_element(points.begin(), points.end(), by_y);
  auto high = std::max_element(points.begin(), points.end(), by_y);
  const char* arrow = options.ascii ? " -> " : " → ";
  std::string text = series.name + "  " + short_number(points.front().y) + arrow + short_number(points.back().y) +
                     "   lowest " + short_number(low->y) + " at " + short_number(low->x) + ", highest " +
                     short_number(high->y) + " at " + short_number(high->x) + "\n";

  Canvas canvas(options.width, options.height, options.ascii);
  auto place = [](double value, double from, double to, int cells) {
    return to != from ? static_cast<int>(std::lround((value - from) / (to - from) * (cells - 1))) : (cells - 1) / 2;
  };
  for (std::size_t i = 0; i < points.size(); ++i) {
    const auto& a = points[i == 0 ? 0 : i - 1];
    const auto& b = points[i];
    canvas.line(place(a.x, box.x0, box.x1, canvas.width()), place(a.y, box.y1, box.y0, canvas.height()),
                place(b.x, box.x0, box.x1, canvas.width()), place(b.y, box.y1, box.y0, canvas.height()));
  }
  std::string top = short_number(box.y1), bottom = short_number(box.y0);
  std::size_t margin = std::max(top.size(), bottom.size());
  for (int row = 0; row < options.height; ++row) {
    std::string label = row == 0 ? top : row == options.height - 1 ? bottom : "";
    text += padded(label, margin) + (options.ascii ? " |" : " │") + canvas.row(row) + "\n";
  }
  text += std::string(margin + 1, ' ') + (options.ascii ? "+" : "└");
  for (int i = 0; i < options.width; ++i) text += options.ascii ? "-" : "─";
  std::string right = short_number(box.x1), left = short_number(box.x0);
  std::size_t gap = options.width > int(left.size() + right.size()) ? options.width - left.size() - right.size() : 1;
  return text + "\n" + std::string(margin + 2, ' ') + left + std::string(gap, ' ') + right + "\n";
}

}  // namespace

LearningCurve::LearningCurve(std::string title) : title_(std::move(title)) {}

void LearningCurve::add(std::string_view series, double x, double y) {
  for (auto& known : series_)
    if (known.name == series) {
      known.points.push_back({x, y});
      return;
    }
  series_.push_back({std::string(series), {{x, y}}});
}

std::string LearningCurve::text(const TextOptions& options) const {
  if (options.width < 4 || options.height < 2)
    throw MisuseError("a learning curve needs a width of 4 and a height of 2 at least, given " +
                      std::to_string(options.width) + " and " + std::to_string(options.height));
  std::string text = title_.empty() ? "" : title_ + "\n";
  for (const auto& series : series_) text += '\n' + panel(series, options);
  return text;
}

void LearningCurve::print() const {
  TextOptions options;
  options.ascii = !terminal::utf8();
  options.width = std::clamp(terminal::columns(STDOUT_FILENO) - 14, 20, 72);
  std::cout << text(options) << std::flush;
}

std::string LearningCurve::svg() const {
  std::vector<Series> drawn;
  for (const auto& series : series_) drawn.push_back({series.name, finite_points(series)});
  return detail::curve_svg(title_, drawn);
}

void LearningCurve::write_svg(const std::filesystem::path& path) const { write_whole_file(path, svg()); }

}  // namespace fabric
