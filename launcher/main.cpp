// The program `fabric`: `fabric run` and `fabric doctor` are in it, the sub-commands that need LibTorch are programs of
// their own that it starts. Called by the name fabricrun, it is `fabric run`.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include <fabric/base/nearest_name.h>
#include <fabric/version.h>

#include "fabric/base/files_internal.h"
#include "launcher/completion.h"
#include "launcher/doctor.h"
#include "launcher/os/exit_codes.h"
#include "launcher/os/visible.h"
#include "launcher/run/agent.h"
#include "launcher/run/hosts/far_end.h"
#include "launcher/run/hosts/hosts_job.h"
#include "launcher/run/mpirun.h"
#include "launcher/start/command.h"

namespace {

using Words = std::vector<std::string>;

constexpr const char* kUsageText =
    R"(usage: fabric COMMAND [arguments]

  run          start a program as several ranks (the same as fabricrun)
  doctor       what is on this machine, and what a run would choose
  convert      translate a checkpoint between safetensors and PyTorch's torch.save
  verify       compare a checkpoint with the checksums in it
  inspect      what a checkpoint holds, and where
  consolidate  make one file out of a sharded checkpoint
  shard        make a sharded checkpoint out of a file
  completion   a script for bash, zsh or fish: fabric completion bash
  help         this text; fabric run --help explains the flags of run
)";

int complain(const std::string& text, int code) {
  std::fprintf(stderr, "fabric: %s\n", fabric::visible_lines(text).c_str());
  return code;
}

int run(const Words& words) {
  auto env = fabric::process_env();
  auto parsed = fabric::run::parse_options(words, *env);
  if (parsed.information) return std::fputs(parsed.information->text.c_str(), stdout), 0;
  if (!parsed.options.hosts.empty()) return fabric::run::run_on_hosts(parsed.options, *env);
  auto options = parsed.options.mpi ? fabric::run::with_mpirun(parsed.options, *env) : parsed.options;
  return fabric::run::run_job(options, *env);
}

// What needs LibTorch is a program of its own, beside this one: fabric-convert, and fabric-checkpoint for the others,
// which is told the command.
int start_program(const std::string& name, const Words& words) {
  const bool convert = name == "convert";
  const std::string file = convert ? "fabric-convert" : "fabric-checkpoint", folder = fabric::own_folder();
  Words line{folder + "/" + file};
  if (!convert) line.push_back(name);
  line.insert(line.end(), words.begin(), words.end());
  execv(line[0].c_str(), fabric::exec_pointers(line).data());
  if (errno != ENOENT)
    return complain("cannot run " + line[0] + ": " + std::strerror(errno), fabric::run::kCannotExecute);
  return complain("`fabric " + name + "` is the program " + file + ", which is not in " + folder +
                      "; it is built and installed with TorchFabric's library",
                  fabric::run::kNotFound);
}

int dispatch(const std::string& called, Words words) {
  if (called == "fabricrun") return run(words);
  std::string command = words.empty() ? "" : words.front();
  if (!words.empty()) words.erase(words.begin());
  if (command == "run") return run(words);
  if (command == "doctor") return fabric::doctor(words);
  if (command == "ssh-host") return fabric::run::serve_host(words);
  if (command == "completion") return fabric::print_completion(words);
  for (const char* name : {"convert", "verify", "inspect", "consolidate", "shard"})
    if (command == name) return start_program(command, words);
  if (command == "--version") return std::printf("fabric %s\n", FABRIC_VERSION) < 0;
  bool asked = command == "help" || command == "--help" || command == "-h";
  if (asked || command.empty()) {
    std::fputs(kUsageText, asked ? stdout : stderr);
    return asked ? 0 : fabric::run::kUsage;
  }
  return complain("there is no command '" + command + "'" +
                      fabric::did_you_mean(command, {"run", "doctor", "convert", "verify", "inspect", "consolidate",
                                                     "shard", "completion", "help"}) +
                      ". To start a program: fabric run -n N PROGRAM",
                  fabric::run::kUsage);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::string called = argc > 0 ? argv[0] : "fabric";
    called = called.substr(called.rfind('/') + 1);
    int code = dispatch(called, Words(argv + (argc > 0), argv + argc));
    // What was printed may never have come to the disk.
    if (std::fflush(stdout) != 0 || std::ferror(stdout))
      return complain(std::string("stdout cannot be written: ") + std::strerror(errno), code ? code : 1);
    return code;
  } catch (const fabric::ConfigError& error) {
    return complain(error.what(), fabric::run::kUsage);
  } catch (const std::exception& error) {
    return complain(error.what(), fabric::run::kLauncherFailed);
  }
}
