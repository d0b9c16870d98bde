#pragma once

#include <filesystem>
#include <iosfwd>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fabric/export.h>

namespace fabric {

/// Collects named series of numbers and draws them: as text for a terminal, as an SVG file for a page. Each series has
/// a panel and a scale of its own. Points that are not finite are left out of the drawing.
class FABRIC_API LearningCurve {
 public:
  struct Point {
    double x = 0;
    double y = 0;
  };
  struct Series {
    std::string name;
    std::vector<Point> points;
  };

  explicit LearningCurve(std::string title = "");
  void add(std::string_view series, double x, double y);
  const std::vector<Series>& series() const { return series_; }

  struct TextOptions {
    int width = 60;  // columns of the drawing, without the axis
    int height = 8;  // lines of each panel
    bool ascii = false;
  };
  /// Each series as one text panel, in the order they were first added.
  std::string text(const TextOptions& options) const;
  /// text() to stdout, as wide as the terminal, in ASCII where the locale is not UTF-8.
  void print() const;
  std::string svg() const;
  /// Makes the folders it needs. Throws Error when the file cannot be written; an older one is then untouched.
  void write_svg(const std::filesystem::path& path) const;

 private:
  std::string title_;
  std::vector<Series> series_;
};

}  // namespace fabric
