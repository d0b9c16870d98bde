#include <cxxabi.h>
#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <string_view>
#include <typeinfo>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>
#include <fabric/base/no_sigpipe_internal.h>
#include <fabric/launcher/error_file.h>

#include "launcher/os/signal_mask.h"
#include "launcher/worker/backtrace.h"
#include "launcher/worker/settings_error.h"

namespace fabric {
namespace {

constexpr std::array kSignals{SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
constexpr std::size_t kLongestPath = 4096;
// A rank that crashed in the middle of malloc cannot always be asked for names; what is known without is written first.
constexpr unsigned kSecondsForNames = 3;

enum State : int { idle, writing, written };

// Fixed storage: a process that was hit by a signal cannot allocate.
char path[kLongestPath], fresh_path[kLongestPath + 8];
std::atomic<int> state{idle};
std::atomic<pid_t> writing_thread{0};
pid_t owner = -1;
std::terminate_handler previous_handler = nullptr;
bool writes_files = false;

/// Text to a file by system calls alone, so that a signal handler may use it.
class Writer {
 public:
  explicit Writer(int fd) : fd_(fd) {}
  void put(std::string_view text) {
    for (char letter : text) {
      if (used_ == sizeof buffer_) flush();
      buffer_[used_++] = letter;
    }
  }
  /// As the inside of a JSON string. What is not UTF-8 becomes question marks.
  void put_string(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
      auto byte = static_cast<unsigned char>(text[i]);
      std::size_t length = length_of_character(text.substr(i));
      if (byte == '"' || byte == '\\')
        put({"\\", 1}), put(text.substr(i, 1));
      else if (byte == '\n')
        put("\\n");
      else if (byte < 32 || byte == 127)
        put(" ");
      else
        put(length > 0 ? text.substr(i, length) : "?");
      i += std::max<std::size_t>(length, 1);
    }
  }
  void put_number(unsigned long long number, unsigned base = 10) {
    char digits[32];
    std::size_t at = sizeof digits;
    do digits[--at] = "0123456789abcdef"[number % base];
    while (number /= base);
    put({digits + at, sizeof digits - at});
  }
  bool finish() {
    flush();
    return good_;
  }

 private:
  static std::size_t length_of_character(std::string_view text) {
    auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
    unsigned first = byte(0);
    if (first < 0x80) return 1;
    std::size_t length = first >= 0xC2 && first < 0xE0   ? 2
                         : (first & 0xF0) == 0xE0        ? 3
                         : first >= 0xF0 && first < 0xF5 ? 4
                                                         : 0;
    for (std::size_t i = 1; i < length; ++i)
      if ((byte(i) & 0xC0) != 0x80) return 0;
    bool too_long = (first == 0xE0 && byte(1) < 0xA0) || (first == 0xF0 && byte(1) < 0x90);
    bool no_character = (first == 0xED && byte(1) >= 0xA0) || (first == 0xF4 && byte(1) >= 0x90);
    return too_long || no_character ? 0 : length;
  }
  void flush() {
    for (std::size_t at = 0; at < used_ && good_;) {
      ssize_t size = write(fd_, buffer_ + at, used_ - at);
      good_ = size > 0 || errno == EINTR;
      if (size > 0) at += static_cast<std::size_t>(size);
    }
    used_ = 0;
  }

  int fd_;
  bool good_ = true;
  std::size_t used_ = 0;
  char buffer_[2048];
};

bool is_in_place() {
  struct stat there {};
  return stat(path, &there) == 0 && (S_ISFIFO(there.st_mode) || S_ISCHR(there.st_mode));
}

/// As AtomicFile writes, with system calls alone: what is no regular file (a pipe, /dev/null) is written in place; a
/// name that somebody planted beside the file is removed and never followed.
class Target {
 public:
  Target() : in_place_(is_in_place()) {
    if (in_place_)
      fd_ = open(path, O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    else
      unlink(fresh_path), fd_ = open_fresh();
  }
  static int open_fresh() { return open(fresh_path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644); }
  int fd() const { return fd_; }
  bool finish(bool good) {
    good = good && (fsync(fd_) == 0 || errno == EINVAL || errno == EROFS);
    close(fd_);
    if (in_place_ || (good && rename(fresh_path, path) == 0)) return good;
    unlink(fresh_path);
    return false;
  }

 private:
  bool in_place_;
  int fd_ = -1;
};

/// torchrun's format. The two functions put message and backtrace.
template <class Message, class Backtrace>
bool write_file(Message put_message, Backtrace put_backtrace, bool of_settings = false) {
  Target target;
  if (target.fd() < 0) return false;
  NoSigpipe guard;
  Writer out(target.fd());
  out.put(R"({"message":{"message":")");
  put_message(out);
  out.put(R"(","extraInfo":{"py_callstack":")");
  put_backtrace(out);
  out.put(R"(","timestamp":")");
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  out.put_number(static_cast<unsigned long long>(now.tv_sec));
  out.put(of_settings ? "\",\"settings\":true}}}\n" : "\"}}}\n");
  return target.finish(out.finish());
}

/// One thread of the process that the launcher started writes; others that fail meanwhile wait, or they would end it.
bool may_write() {
  if (!*path || getpid() != owner) return false;
  int expected = idle;
  if (state.compare_exchange_strong(expected, writing)) {
    writing_thread = gettid();
    return true;
  }
  // Crashed while it wrote.
  if (writing_thread == gettid()) return false;
  for (int i = 0; i < 500 && state.load() == writing; ++i) usleep(10000);
  return false;
}

bool write_text(std::string_view message, std::string_view backtrace, bool of_settings = false) noexcept {
  if (!may_write()) return false;
  bool good = write_file([&](Writer& out) { out.put_string(message); }, [&](Writer& out) { out.put_string(backtrace); },
                         of_settings);
  state = written;
  return good;
}

// Where it was thrown: as nobody catches it, the stack has not been unwound. The frames of the throwing itself go.
std::string backtrace_of_throw() {
  void* frames[kMostFrames];
  int count = backtrace(frames, kMostFrames);
  std::string text = describe_frames(frames, count, 1);
  for (const char* last : {"__cxa_throw", "__cxa_rethrow", "std::terminate()"}) {
    auto at = text.find(last);
    auto next = at == std::string::npos ? at : text.find('\n', at);
    if (next == std::string::npos) continue;
    int skipped = 1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<long>(next), '\n'));
    return describe_frames(frames, count, 1 + skipped);
  }
  return text;
}

std::string message_of_current_exception() {
  const auto* type = abi::__cxa_current_exception_type();
  if (!type) return "std::terminate was called without an exception";
  std::string name = demangle(type->name());
  try {
    throw;
  } catch (const std::exception& error) {
    return name + ": " + error.what();
  } catch (const char* text) {
    return name + ": " + (text ? text : "");
  } catch (const std::string& text) {
    return name + ": " + text;
  } catch (...) {
    return name;
  }
}

// A setting that is wrong is the user's to mend: a backtrace and a core would not help. A handler of the program's own
// comes first.
void end_if_settings_are_wrong() {
  if (previous_handler && previous_handler != __gnu_cxx::__verbose_terminate_handler) return;
  try {
    if (!abi::__cxa_current_exception_type()) return;
    throw;
  } catch (const ConfigError& error) {
    tell_settings_error(program_invocation_short_name, error.what());
    _exit(kSettingsExitCode);
  } catch (...) {
  }
}

[[noreturn]] void on_terminate() {
  end_if_settings_are_wrong();
  try {
    if (writes_files) write_text(message_of_current_exception(), backtrace_of_throw());
  } catch (...) {  // no memory: the launcher tells the signal at least
  }
  if (previous_handler) previous_handler();
  std::abort();
}

void take_terminate() {
  if (auto handler = std::set_terminate(on_terminate); handler != on_terminate) previous_handler = handler;
}

// Whatever main does first may find that a setting is wrong.
[[maybe_unused]] const bool taken_at_start = (take_terminate(), true);

void put_signal(Writer& out, int number, const siginfo_t& info) {
  out.put("Signal ");
  out.put_number(static_cast<unsigned>(number));
  out.put(" (SIG");
  const char* name = sigabbrev_np(number);
  out.put(name ? name : "?");
  out.put(")");
  if (info.si_code > 0 && (number == SIGSEGV || number == SIGBUS)) {
    out.put(" at address 0x");
    out.put_number(reinterpret_cast<std::uintptr_t>(info.si_addr), 16);
  } else if (info.si_code <= 0 && info.si_pid != 0 && info.si_pid != owner) {
    out.put(" sent by process ");
    out.put_number(static_cast<unsigned>(info.si_pid));
  }
}

void put_addresses(Writer& out, void* const* frames, int count, int first) {
  for (int i = first; i < count; ++i) {
    out.put("#");
    out.put_number(static_cast<unsigned>(i - first));
    out.put(" 0x");
    out.put_number(reinterpret_cast<std::uintptr_t>(frames[i]), 16);
    out.put("\\n");
  }
}

// The names of functions need memory and locks, which the crash may have left in any state. So a copy of the process
// looks for them, and the alarm clock ends it when it gets stuck.
void write_names(int number, const siginfo_t& info, void* const* frames, int count, int first) {
  pid_t child = _Fork();
  if (child < 0) return;
  if (child > 0) {
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return;
  }
  for (int each : kSignals) signal(each, SIG_DFL);
  signal(SIGALRM, SIG_DFL);
  unblock_all();
  alarm(kSecondsForNames);
  auto names = describe_frames(frames, count, first, true);
  write_file([&](Writer& out) { put_signal(out, number, info); }, [&](Writer& out) { out.put_string(names); });
  _exit(0);
}

void on_signal(int number, siginfo_t* info, void*) {
  int saved = errno;
  if (may_write()) {
    void* frames[kMostFrames];
    int count = backtrace(frames, kMostFrames);
    int first = std::min(count, 2);  // this function and the kernel's return from it
    write_file([&](Writer& out) { put_signal(out, number, *info); },
               [&](Writer& out) { put_addresses(out, frames, count, first); });
    if (!is_in_place()) write_names(number, *info, frames, count, first);
    state = written;
  }
  // As if we had not been here: the instruction that failed fails again, what was sent is sent again.
  signal(number, SIG_DFL);
  if (info->si_code <= 0) raise(number);
  errno = saved;
}

void take_signals() {
  // A stack that overflowed cannot run a handler.
  static char stack[64 * 1024];
  stack_t current{};
  if (sigaltstack(nullptr, &current) == 0 && (current.ss_flags & SS_DISABLE)) {
    stack_t ours{.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
    sigaltstack(&ours, nullptr);
  }
  struct sigaction ours {};
  ours.sa_sigaction = on_signal;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int number : kSignals) {
    struct sigaction current_action {};
    bool is_default = sigaction(number, nullptr, &current_action) == 0 && !(current_action.sa_flags & SA_SIGINFO) &&
                      current_action.sa_handler == SIG_DFL;
    if (is_default) sigaction(number, &ours, nullptr);
  }
}

bool find_path() {
  const std::string text = process_env()->get_or("TORCHELASTIC_ERROR_FILE", "");
  if (text.empty() || text.size() >= kLongestPath) return false;
  std::strcpy(path, text.c_str());
  // A link stays, and the file that it names is written.
  std::error_code error;
  auto file = std::filesystem::weakly_canonical(text, error).string();
  if (!error && !is_in_place() && file.size() < kLongestPath) std::strcpy(path, file.c_str());
  std::strcpy(fresh_path, path);
  std::strcat(fresh_path, ".new");
  owner = getpid();
  return true;
}

bool is_ready() {
  static const bool found = find_path();
  return found;
}

}  // namespace

void install_error_file() {
  static const bool installed = [] {
    writes_files = is_ready();
    take_terminate();
    if (!writes_files) return false;
    // The first call loads libgcc_s, which a signal handler could not.
    void* frame;
    backtrace(&frame, 1);
    take_signals();
    return true;
  }();
  static_cast<void>(installed);
}

bool write_error_file(const std::exception& error) noexcept {
  try {
    return is_ready() && write_text(demangle(typeid(error).name()) + ": " + error.what(), "");
  } catch (...) {
    return false;
  }
}

bool write_settings_error_file(const std::string& message) noexcept {
  return is_ready() && write_text(message, "", true);
}

bool write_error_file(const std::string& message, const std::string& backtrace) noexcept {
  return is_ready() && write_text(message, backtrace);
}

}  // namespace fabric
