#include <fabric/utilities/progress.h>

#include <fcntl.h>
#include <pty.h>
#include <unistd.h>

#include <optional>
#include <regex>
#include <thread>
#include <vector>

#include "fabric/utilities/terminal_internal.h"
#include "tests/support/catch.h"

namespace {

using Mode = fabric::ProgressOptions::Mode;

// Both ends of a pipe or of a terminal; what was written is read without waiting.
struct Screen {
  int reader = -1, writer = -1;
  explicit Screen(bool terminal, unsigned short columns = 100) {
    int ends[2];
    if (terminal) {
      winsize size{.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
      REQUIRE(openpty(&reader, &writer, nullptr, nullptr, &size) == 0);
    } else {
      REQUIRE(pipe(ends) == 0);
      reader = ends[0], writer = ends[1];
    }
    fcntl(reader, F_SETFL, O_NONBLOCK);
  }
  ~Screen() { close(reader), close(writer); }
  std::string text() const {
    std::string all;
    char buffer[4096];
    for (ssize_t n; (n = read(reader, buffer, sizeof buffer)) > 0;) all.append(buffer, n);
    return all;
  }
};

std::size_t count(const std::string& text, char c) { return std::count(text.begin(), text.end(), c); }

}  // namespace

TEST_CASE("progress hands out every element of a range, by reference", "[progress]") {
  std::vector<int> numbers = {1, 2, 3};
  for (int& number : fabric::progress(numbers, "x")) number *= 2;
  REQUIRE(numbers == std::vector<int>{2, 4, 6});
  int sum = 0;
  for (int number : fabric::progress(std::vector<int>{1, 2, 3}, "temporary")) sum += number;
  REQUIRE(sum == 6);
  int plain[] = {4, 5};
  for (int number : fabric::progress(plain, "array")) sum += number;
  REQUIRE(sum == 15);
  auto range = fabric::progress(numbers, "x");
  for ([[maybe_unused]] int number : range) {
  }
  REQUIRE(range.bar().done() == 3);
}

TEST_CASE("A pipe gets nothing, a terminal a bar", "[progress]") {
  Screen pipe(false), terminal(true);
  std::vector<int> numbers(50);
  for ([[maybe_unused]] int n : fabric::progress(numbers, "epoch 1", true, {.fd = pipe.writer})) {
  }
  CHECK(pipe.text().empty());
  for ([[maybe_unused]] int n : fabric::progress(numbers, "epoch 1", true, {.fd = terminal.writer})) {
  }
  auto text = terminal.text();
  INFO(text);
  CHECK(text.find("epoch 1   0% ") != std::string::npos);
  CHECK(text.find("epoch 1 100% ") != std::string::npos);
  CHECK(text.find("50/50 [00:00, ") != std::string::npos);
  CHECK(text.back() == '\n');
  CHECK(count(text, '\n') == 1);
}

TEST_CASE("A narrow terminal gets lines that do not wrap", "[progress]") {
  for (std::optional<std::size_t> total : {std::optional<std::size_t>(10), std::optional<std::size_t>()}) {
    Screen terminal(true, 30);
    {
      fabric::Progress progress("träining of a model with a long name", total, true,
                                {.redraw_seconds = 0, .fd = terminal.writer});
      progress.set_note("loss 0.5");
      progress.advance(10);
    }
    auto text = terminal.text();
    INFO(text);
    std::size_t drawn = 0;
    for (std::size_t begin = 0, end; (end = text.find("\x1b[K", begin)) != text.npos; begin = end + 3, ++drawn) {
      auto line = text.substr(text.find('\r', begin) + 1, end - text.find('\r', begin) - 1);
      CHECK(line.find('\r') == line.npos);
      CHECK(fabric::terminal::width(line) <= 29);
      CHECK(line.rfind("träining of a model", 0) == 0);
    }
    CHECK(drawn >= 3);
  }
}

TEST_CASE("Text is cut between characters", "[progress]") {
  using fabric::terminal::cut;
  CHECK(cut("▕ab", 2) == "▕a");
  CHECK(cut("a▕b", 1) == "a");
  CHECK(cut("ä", 1) == "ä");
  CHECK(cut("ab", 5) == "ab");
  CHECK(cut("ab", 0).empty());
}

TEST_CASE("A rank that shows nothing writes nothing to a terminal", "[progress]") {
  Screen terminal(true);
  fabric::Progress progress("hidden", 10, false, {.fd = terminal.writer});
  progress.advance(10);
  progress.finish();
  CHECK(terminal.text().empty());
  CHECK(progress.done() == 10);
}

TEST_CASE("A bar is redrawn no more often than asked for", "[progress]") {
  Screen terminal(true);
  {
    fabric::Progress progress("fast", 100000, true, {.redraw_seconds = 3600, .fd = terminal.writer});
    for (int i = 0; i < 100000; ++i) progress.advance();
  }
  CHECK(count(terminal.text(), '\r') <= 3);  // the first, the last, and the terminal's own before a line end
}

TEST_CASE("Time left, rate and note follow the loop", "[progress]") {
  Screen pipe(false);
  fabric::Progress progress("train", 4, true, {.mode = Mode::lines, .line_seconds = 0, .fd = pipe.writer});
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  progress.set_note("loss 0.5");
  progress.advance();
  auto text = pipe.text();
  INFO(text);
  std::smatch match;
  REQUIRE(std::regex_match(text, match, std::regex("train  25% 1/4 \\[(.*)<(.*), ([0-9.]+) s/it\\] loss 0.5\n")));
  // The machine may have slept longer than it was told to; the three figures must agree with one another.
  double seconds = std::stod(match[3]);
  CHECK(seconds >= 1.2);
  bool agrees = false;
  for (double rounding : {-0.05, 0.0, 0.05})
    agrees = agrees || match[1] == fabric::terminal::clock_text(seconds + rounding);
  CHECK(agrees);
  agrees = false;
  for (double rounding : {-0.15, 0.0, 0.15})
    agrees = agrees || match[2] == fabric::terminal::clock_text(3 * seconds + rounding);
  CHECK(agrees);
}

TEST_CASE("Without a total the count and rate are shown", "[progress]") {
  Screen pipe(false);
  {
    fabric::Progress progress("stream", std::nullopt, true, {.mode = Mode::lines, .fd = pipe.writer});
    progress.advance(7);
  }
  auto text = pipe.text();
  CHECK(text.find("stream 7 [00:00, ") == 0);
  CHECK(count(text, '\n') == 1);
}

TEST_CASE("Leaving the loop early ends the line", "[progress]") {
  Screen terminal(true);
  for (int n : fabric::progress(std::vector<int>{1, 2, 3}, "early", true, {.fd = terminal.writer}))
    if (n == 2) break;
  auto text = terminal.text();
  CHECK(text.find(" 33% ") != std::string::npos);
  CHECK(text.back() == '\n');
}

TEST_CASE("Clock texts", "[progress]") {
  using fabric::terminal::clock_text;
  CHECK(clock_text(75) == "01:15");
  CHECK(clock_text(3675) == "1:01:15");
  CHECK(clock_text(-1) == "?");
  CHECK(clock_text(1e300) == "?");
  CHECK(fabric::terminal::width("▕a") == 2);
}
