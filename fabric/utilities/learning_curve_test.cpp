#include <fabric/utilities/learning_curve.h>

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

namespace {

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> all;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

struct Folder {
  std::filesystem::path path;
  Folder() {
    char name[] = "/tmp/fabric_curve_XXXXXX";
    REQUIRE(mkdtemp(name));
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("A falling series is drawn from top left to bottom right", "[curve]") {
  fabric::LearningCurve curve("title");
  for (int i = 0; i <= 10; ++i) curve.add("loss", i, 10 - i);
  auto text = lines(curve.text({.width = 20, .height = 5, .ascii = true}));
  REQUIRE(text.size() == 10);
  CHECK(text[0] == "title");
  CHECK(text[2] == "loss  10 -> 0   lowest 0 at 10, highest 10 at 0");
  CHECK(text[3].rfind("10 |*", 0) == 0);
  CHECK(text[7].rfind(" 0 |", 0) == 0);
  CHECK(text[7].back() == '*');
  CHECK(text[7].size() == 4 + 20);
  CHECK(text[9] == "    0                 10");
}

TEST_CASE("Series have panels of their own; odd values do no harm", "[curve]") {
  fabric::LearningCurve curve;
  curve.add("flat", 3, 1);
  curve.add("empty", 0, std::nan(""));
  curve.add("mixed", 0, 1);
  curve.add("mixed", 1, std::numeric_limits<double>::infinity());
  curve.add("mixed", 2, -1e300);
  auto text = curve.text({});
  CHECK(text.find("flat  1 → 1") != std::string::npos);
  CHECK(text.find("empty: no finite value") != std::string::npos);
  CHECK(text.find("mixed  1 → -1e+300") != std::string::npos);
  auto svg = curve.svg();
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("inf") == std::string::npos);
  CHECK_THROWS_AS(curve.text({.width = 1}), fabric::MisuseError);
}

TEST_CASE("The SVG holds each series and escapes names", "[curve]") {
  Folder folder;
  fabric::LearningCurve curve("a < b & c");
  curve.add("<loss>", 0, 2);
  curve.add("<loss>", 1, 1);
  curve.add("accuracy", 0, 0.5);
  auto path = folder.path / "new" / "curve.svg";
  curve.write_svg(path);
  std::ifstream in(path);
  std::string svg{std::istreambuf_iterator<char>(in), {}};
  CHECK(svg.rfind("<svg", 0) == 0);
  CHECK(svg.find("a &lt; b &amp; c") != std::string::npos);
  CHECK(svg.find("&lt;loss&gt;") != std::string::npos);
  std::size_t polylines = 0;
  for (std::size_t at = 0; (at = svg.find("<polyline", at)) != std::string::npos; ++at) ++polylines;
  CHECK(polylines == 2);
  CHECK(std::distance(std::filesystem::directory_iterator(path.parent_path()), {}) == 1);
}

TEST_CASE("A curve that cannot be written is an error", "[curve]") {
  Folder folder;
  std::ofstream(folder.path / "file").put('x');
  fabric::LearningCurve curve;
  CHECK_THROWS_AS(curve.write_svg(folder.path / "file" / "curve.svg"), fabric::Error);
  std::filesystem::create_directory(folder.path / "taken.svg");
  CHECK_THROWS_AS(curve.write_svg(folder.path / "taken.svg"), fabric::Error);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 2);
}
