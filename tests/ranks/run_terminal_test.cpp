// What stands on a terminal while ranks draw progress and write lines.
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::now;

namespace {

/// A terminal of 60 columns: returns, line ends, and the one escape sequence that erases a row.
class Screen {
 public:
  void take(const std::string& text) {
    for (char letter : text) take(letter);
  }
  const std::vector<std::string>& rows() const { return rows_; }
  bool has(const std::string& row) const { return std::find(rows_.begin(), rows_.end(), row) != rows_.end(); }

 private:
  void take(char letter) {
    if (!escape_.empty() || letter == '\x1b') {
      escape_ += letter;
      bool ends = escape_.size() > 2 && isalpha(static_cast<unsigned char>(letter));
      if (ends && letter == 'K') rows_.back().resize(std::min(rows_.back().size(), column_));
      if (ends) escape_.clear();
    } else if (letter == '\r') {
      column_ = 0;
    } else if (letter == '\n') {
      rows_.emplace_back();
      column_ = 0;
    } else {
      auto& row = rows_.back();
      row.resize(std::max(row.size(), column_ + 1), ' ');
      row[column_++] = letter;
    }
  }
  std::vector<std::string> rows_{""};
  std::size_t column_ = 0;
  std::string escape_;
};

/// A program on a terminal of its own.
class OnTerminal {
 public:
  explicit OnTerminal(std::vector<std::string> words) {
    winsize size{.ws_row = 24, .ws_col = 60, .ws_xpixel = 0, .ws_ypixel = 0};
    pid_ = forkpty(&terminal_, nullptr, nullptr, &size);
    if (pid_ != 0) return;
    setenv("SLURMD_NODENAME", "n", 1);
    setenv("LANG", "C", 1);
    for (const char* name : {"LC_ALL", "LC_CTYPE", "RANK", "WORLD_SIZE", "LOCAL_RANK"}) unsetenv(name);
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  ~OnTerminal() {
    if (pid_ > 0) kill(pid_, SIGKILL), waitpid(pid_, nullptr, 0);
    close(terminal_);
  }
  /// Reads until the text has come, at most `seconds`.
  bool wait_for(const std::string& text, double seconds) {
    for (double limit = now() + seconds; now() < limit && written.find(text) == std::string::npos;)
      if (!read_some()) break;
    return written.find(text) != std::string::npos;
  }
  int finish() {
    for (double limit = now() + 20; now() < limit && read_some();) continue;
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WEXITSTATUS(status);
  }
  std::string written;
  Screen screen;

 private:
  bool read_some() {
    pollfd entry{terminal_, POLLIN, 0};
    if (poll(&entry, 1, 100) <= 0) return true;
    char buffer[4096];
    ssize_t size = read(terminal_, buffer, sizeof buffer);
    if (size <= 0) return false;
    written.append(buffer, static_cast<std::size_t>(size));
    screen.take({buffer, static_cast<std::size_t>(size)});
    return true;
  }
  pid_t pid_ = -1;
  int terminal_ = -1;
};

}  // namespace

TEST_CASE("progress that ranks write over itself appears as it comes, and is not torn", "[terminal]") {
  const std::string script =
      "if [ $RANK = 0 ]; then for i in 1 2 3 4 5; do printf '\\r step %s of 5' $i >&2; sleep 0.1; done; echo >&2; else "
      "for i in 1 2 3 4 5 6 7; do echo line $i; sleep 0.06; done; fi";
  OnTerminal job({run_support::program(), "run", "-n", "2", "sh", "-c", script});
  CHECK(job.wait_for("[n:0]  step 2 of 5", 5));
  CHECK(job.written.find("step 5") == std::string::npos);
  CHECK(job.finish() == 0);
  for (int i = 1; i <= 7; ++i) CHECK(job.screen.has("[n:1] line " + std::to_string(i)));
  CHECK(job.screen.has("[n:0]  step 5 of 5"));
  for (const auto& row : job.screen.rows()) {
    INFO("row: " << row);
    bool whole =
        row.empty() || row.starts_with("[n:1] line ") || row == "[n:0]  step 5 of 5" || row.starts_with("fabric:");
    CHECK(whole);
  }
}

TEST_CASE("fabric run on a terminal shows an epoch's progress within two seconds", "[terminal]") {
  OnTerminal job({run_support::program(), "run", "-n", "2", FABRIC_RUN_PROGRAM, "progress"});
  CHECK(job.wait_for("[n:0] epoch 1", 2 * (run_support::kSanitized ? 10 : 1)));
  CHECK(job.finish() == 0);
  // The last state stays; no row was wider than the terminal.
  auto last = std::find_if(job.screen.rows().begin(), job.screen.rows().end(),
                           [](const std::string& row) { return row.starts_with("[n:0] epoch 1 100%"); });
  REQUIRE(last != job.screen.rows().end());
  CHECK(last->find("30/30") != std::string::npos);
  for (const auto& row : job.screen.rows())
    if (!row.starts_with("fabric:")) CHECK(row.size() < 60);
}

TEST_CASE("in a program that launches itself the lines of others do not tear the bar of rank 0", "[terminal]") {
  OnTerminal job({FABRIC_RUN_PROGRAM, "launch-progress"});
  CHECK(job.finish() == 0);
  int lines = 0;
  for (const auto& row : job.screen.rows()) {
    INFO("row: " << row);
    lines += row.starts_with("[rank 1] line ");
    CHECK(row.find("line", row.starts_with("[rank 1] line ") ? 14 : 0) == std::string::npos);
  }
  CHECK(lines == 20);
}
