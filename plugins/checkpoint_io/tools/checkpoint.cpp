// fabric-checkpoint: what `fabric verify`, `inspect`, `consolidate` and `shard` start.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

#include "plugins/checkpoint_io/tools/tools.h"

namespace {

using namespace fabric::checkpoint;

constexpr std::string_view kHelp = R"(fabric-checkpoint: looks after checkpoints

usage: fabric verify PATH            compares every byte with the checksums in the checkpoint
       fabric inspect PATH           names, types, shapes, sizes and places of tensors, and the values beside them
       fabric consolidate FOLDER FILE [--no-verify]
                                     one safetensors file out of a sharded checkpoint
       fabric shard PATH FOLDER -n N [--no-verify]
                                     a sharded checkpoint of N files, out of any other

  PATH           a safetensors file, one of Python's torch.save, the folder of a sharded checkpoint or one that Python's
                 torch.distributed.checkpoint wrote, an index of weights in several files or its folder
  -n N           from 1 to 4096 files; tensors of 1 MiB and more are split by rows
  --no-verify    do not compare PATH or FOLDER with its checksums first
  --help         this text

What is written is written as a whole or not at all; what had the name is replaced. No command needs memory for more
than a piece of the checkpoint. To other formats: fabric convert.

verify ends with 0 where all is as it was written, 1 where something is damaged or cannot be read, 3 where nothing is
wrong as far as can be seen, but bytes have no checksum (files of other programs and of older versions). The others end
with 0 or 1. A command line that cannot be understood: 2.
)";

/// The command line cannot be understood.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string command;
  std::vector<std::string> paths;
  int shards = 0;
  bool verify = true, help = false;
};

int parse_count(const std::string& text) {
  std::size_t end = 0;
  int count = 0;
  try {
    count = std::stoi(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  if (end == 0 || end != text.size() || count < 1 || count > 4096)
    throw UsageError("-n " + text + ": give a number from 1 to 4096");
  return count;
}

void require_arguments(const Arguments& out) {
  const bool two = out.command == "consolidate" || out.command == "shard";
  if (out.paths.size() != (two ? 2u : 1u))
    throw UsageError(out.command + (two ? " needs two paths; " : " needs one path; ") +
                     std::to_string(out.paths.size()) + " given");
  if (out.command == "shard" && out.shards == 0) throw UsageError("shard needs -n N, the number of files");
  if (out.command != "shard" && out.shards != 0) throw UsageError("-n is for shard");
  if (!out.verify && !two) throw UsageError("--no-verify is for consolidate and shard");
  if (out.command != "consolidate") return;
  for (const char* torch : {".pt", ".pth", ".ckpt", ".bin"})
    if (out.paths[1].ends_with(torch))
      throw UsageError("consolidate writes a safetensors file; for PyTorch's format: fabric convert " + out.paths[0] +
                       " " + out.paths[1]);
}

Arguments parse(const std::vector<std::string>& words) {
  const std::vector<std::string> commands{"verify", "inspect", "consolidate", "shard"};
  const std::vector<std::string> flags{"-n", "--no-verify", "--help"};
  Arguments out;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--help" || word == "-h" || word == "help") {
      out.help = true;
      return out;
    }
    if (word == "--no-verify") {
      out.verify = false;
    } else if (word == "-n") {
      if (i + 1 == words.size()) throw UsageError("-n needs a value");
      out.shards = parse_count(words[++i]);
    } else if (word.starts_with("-n=") || (word.starts_with("-n") && word.size() > 2)) {
      out.shards = parse_count(word.substr(word[2] == '=' ? 3 : 2));
    } else if (word.starts_with("-")) {
      throw UsageError("unknown flag '" + word + "'" + fabric::did_you_mean(word, flags));
    } else if (!out.command.empty()) {
      out.paths.push_back(word);
    } else {
      for (const auto& command : commands)
        if (word == command) out.command = word;
      if (out.command.empty()) throw UsageError("no command '" + word + "'" + fabric::did_you_mean(word, commands));
    }
  }
  if (out.command.empty()) throw UsageError("a command is needed: verify, inspect, consolidate or shard");
  require_arguments(out);
  return out;
}

volatile std::sig_atomic_t asked_to_stop = 0;  // by this signal

/// Leaves the work where it is, so that what is half written goes.
struct Stopped {
  int signal;
};

// The second time such a signal ends the program at once.
void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { asked_to_stop = signal; };
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) {
    struct sigaction before {};
    // What whoever started this program has set to be ignored stays so.
    if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

/// As if the signal had ended it.
[[noreturn]] void end_by(int signal) {
  std::signal(signal, SIG_DFL);
  raise(signal);
  std::_Exit(128 + signal);
}

/// A row of the terminal that says how far the work is; nothing where stderr is none. Called for each piece.
class ProgressRow {
 public:
  ~ProgressRow() { erase(); }
  void operator()(const char* doing, std::uint64_t done, std::uint64_t total) {
    if (asked_to_stop != 0) throw Stopped{asked_to_stop};
    const auto now = std::chrono::steady_clock::now();
    if (!terminal_ || total == 0 || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    shown_ = true;
    std::fprintf(stderr, "\r\x1b[K%s: %3.0f %% of %.1f MB", doing,
                 100.0 * static_cast<double>(done) / static_cast<double>(total), static_cast<double>(total) / 1e6);
    std::fflush(stderr);
  }
  void erase() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
    shown_ = false;
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) == 1, shown_ = false;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

int verify(const std::string& path, ProgressRow& row) {
  const auto report = verify_checkpoint(path, std::ref(row));
  row.erase();
  for (const auto& fault : report.faults) std::cout << printable(path + ": " + fault) << "\n";
  std::cout << printable(path) << ": " << report.format << ", " << report.tensors
            << (report.tensors == 1 ? " tensor in " : " tensors in ") << report.files
            << (report.files == 1 ? " file: " : " files: ");
  if (!report.faults.empty()) {
    std::cout << "DAMAGED, " << report.faults.size() << (report.faults.size() == 1 ? " fault\n" : " faults\n");
    return 1;
  }
  if (report.unchecked == 0) {
    std::cout << "all " << report.checked << " bytes are as they were written\n";
    return 0;
  }
  std::cout << "nothing wrong is seen, but " << report.unchecked << " bytes have no checksum\n";
  return 3;
}

int run(const Arguments& arguments) {
  const auto& paths = arguments.paths;
  ProgressRow row;
  if (arguments.command == "verify") return verify(paths[0], row);
  if (arguments.command == "inspect") {
    std::cout << inspect_checkpoint(paths[0]);
    return 0;
  }
  const CopyOptions options{arguments.verify, std::ref(row)};
  const auto report = arguments.command == "shard" ? shard_checkpoint(paths[0], paths[1], arguments.shards, options)
                                                   : consolidate_checkpoint(paths[0], paths[1], options);
  row.erase();
  std::ostream& told = said_on(paths[1]);
  told << printable(paths[0] + " -> " + paths[1]) << ": " << report.tensors << " tensors, " << report.bytes
       << " bytes\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) {
      std::cout << kHelp;
      return 0;
    }
    stop_on_signals();
    int code = run(arguments);
    if (!std::cout.flush()) {
      std::cerr << "fabric-checkpoint: stdout cannot be written\n";
      return code == 0 ? 1 : code;
    }
    return code;
  } catch (const Stopped& stopped) {
    end_by(stopped.signal);
  } catch (const UsageError& error) {
    std::cerr << "fabric-checkpoint: " << printable(error.what()) << "\nTry: fabric-checkpoint --help\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "fabric-checkpoint: " << printable(error.what()) << "\n";
    return 1;
  }
}
