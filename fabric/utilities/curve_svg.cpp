#include "fabric/utilities/curve_svg_internal.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "fabric/utilities/terminal_internal.h"

namespace fabric::detail {
namespace {

constexpr double kWidth = 720, kLeft = 70, kRight = 20, kPanel = 190, kGap = 60, kTop = 50;

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (static_cast<unsigned char>(c) >= ' ')
      out += c;
  }
  return out;
}

std::string fixed(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

std::string label(double x, double y, const std::string& anchor, const std::string& text,
                  const std::string& style = "") {
  return "<text x=\"" + fixed(x) + "\" y=\"" + fixed(y) + "\" text-anchor=\"" + anchor + "\"" + style + ">" +
         escaped(text) + "</text>\n";
}

// Multiples of 1, 2 or 5 times a power of ten within [low, high]: about five of them.
std::vector<double> ticks(double low, double high) {
  double rough = (high - low) / 5;
  double power = std::pow(10, std::floor(std::log10(rough)));
  double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : rough / power < 7.5 ? 5 : 10);
  std::vector<double> at;
  double first = std::ceil(low / step - 1e-9);
  for (double i = first; i * step <= high + step * 1e-9 && at.size() < 12; ++i) at.push_back(i * step + 0.0);
  return at;
}

struct Axis {
  double low, high, from, to;
  Axis(double low, double high, double from, double to) : low(low), high(high), from(from), to(to) {
    // A range of no width, or lost in the digits of its ends, cannot carry ticks.
    if (double room = std::max(std::abs(low), std::abs(high)); !(high - low > room * 1e-9)) {
      this->low = low - std::max(room * 0.1, 1e-3);
      this->high = high + std::max(room * 0.1, 1e-3);
    }
  }
  double operator()(double value) const { return from + (value - low) / (high - low) * (to - from); }
};

std::string panel(const LearningCurve::Series& series, double top) {
  const char* line_colour = "#2a6fbb";
  std::string out = label(kLeft, top - 10, "start", series.name, " font-weight=\"bold\"");
  if (series.points.empty()) return out + label(kLeft, top + 20, "start", "no finite value");
  auto by_y = [](const auto& a, const auto& b) { return a.y < b.y; };
  auto [low, high] = std::minmax_element(series.points.begin(), series.points.end(), by_y);
  Axis x(series.points.front().x, series.points.back().x, kLeft, kWidth - kRight);
  Axis y(low->y, high->y, top + kPanel - 6, top + 6);
  for (double tick : ticks(y.low, y.high)) {
    out += "<path d=\"M" + fixed(kLeft) + " " + fixed(y(tick)) + "H" + fixed(kWidth - kRight) + "\" class=\"grid\"/>\n";
    out += label(kLeft - 8, y(tick) + 4, "end", terminal::short_number(tick));
  }
  for (double tick : ticks(x.low, x.high))
    out += label(x(tick), top + kPanel + 18, "middle", terminal::short_number(tick));
  out += "<rect x=\"" + fixed(kLeft) + "\" y=\"" + fixed(top) + "\" width=\"" + fixed(kWidth - kLeft - kRight) +
         "\" height=\"" + fixed(kPanel) + "\" class=\"frame\"/>\n<polyline fill=\"none\" stroke=\"";
  out += std::string(line_colour) + "\" stroke-width=\"2\" stroke-linejoin=\"round\" points=\"";
  for (const auto& p : series.points) out += fixed(x(p.x)) + "," + fixed(y(p.y)) + " ";
  out += "\"/>\n";
  const auto& last = series.points.back();
  out += "<circle cx=\"" + fixed(x(last.x)) + "\" cy=\"" + fixed(y(last.y)) + "\" r=\"3.5\" fill=\"" + line_colour +
         "\"/>\n";
  return out + label(kWidth - kRight, top - 10, "end", "last " + terminal::short_number(last.y));
}

}  // namespace

std::string curve_svg(const std::string& title, const std::vector<LearningCurve::Series>& series) {
  double height = kTop + static_cast<double>(series.size()) * (kPanel + kGap);
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + fixed(kWidth) + "\" height=\"" +
                    fixed(height) + "\" viewBox=\"0 0 " + fixed(kWidth) + " " + fixed(height) +
                    "\" font-family=\"sans-serif\" font-size=\"12\">\n"
                    "<style>.grid{stroke:#ddd}.frame{fill:none;stroke:#888}text{fill:#333}</style>\n"
                    "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n";
  if (!title.empty()) out += label(kWidth / 2, 22, "middle", title, " font-size=\"15\"");
  for (std::size_t i = 0; i < series.size(); ++i)
    out += panel(series[i], kTop + static_cast<double>(i) * (kPanel + kGap));
  return out + "</svg>\n";
}

}  // namespace fabric::detail
