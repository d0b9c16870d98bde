#include "launcher/doctor.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/registry/registered_parts.h>
#include <fabric/plugins/environments/cluster_environment.h>
#include <fabric/plugins/loggers/registry.h>
#include <fabric/version.h>

#include "fabric/base/files_internal.h"
#include "fabric/base/ports_internal.h"
#include "fabric/base/processors/container_limits_internal.h"
#include "launcher/os/descriptor.h"
#include "launcher/os/visible.h"
#include "launcher/run/guard/containment.h"
#include "launcher/run/hosts/examine_hosts.h"
#include "launcher/run/machine.h"

namespace fabric {
namespace {

class Doctor {
 public:
  explicit Doctor(std::shared_ptr<EnvReader> env) : env_(std::move(env)) {}

  int examine() {
    std::printf("fabric %s\n", FABRIC_VERSION);
    examine_system();
    examine_libraries();
    list_parts();
    examine_devices();
    examine_network();
    examine_tools();
    examine_choice();
    std::printf(healthy_ ? "\nA run would work here.\n" : "\nA run would NOT work here; see the lines marked !!\n");
    return healthy_ ? 0 : 1;
  }

 private:
  void title(const char* text) { std::printf("\n%s\n", text); }
  void line(const char* what, const std::string& text) { std::printf("  %-22s %s\n", what, visible(text).c_str()); }
  void fault(const char* what, const std::string& text) {
    std::printf("!!%-22s %s\n", what, visible(text).c_str());
    healthy_ = false;
  }

  void examine_system() {
    title("System");
    utsname system{};
    uname(&system);
    line("kernel", std::string(system.sysname) + " " + system.release + " " + system.machine);
    if (!open_pidfd(getpid())) fault("pidfd", "missing; the launcher needs Linux 5.3");
    rlimit files{}, processes{};
    getrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_NPROC, &processes);
    auto number = [](rlim_t value) {
      return value == RLIM_INFINITY ? std::string("unlimited") : std::to_string(value);
    };
    line("open files", number(files.rlim_cur) + ", at most " + number(files.rlim_max));
    line("processes", number(processes.rlim_cur));
    run::Cgroup group;
    line("cgroup.kill", group ? "yes: workers cannot survive, whoever is killed"
                              : "no: helpers in own sessions survive if launcher and guardian are killed at one blow; "
                                "--pid-namespace prevents that");
    std::string folder = env_->get_or("TMPDIR", "");
    if (folder.empty()) folder = "/tmp";
    if (access(folder.c_str(), W_OK) == 0)
      line("temporary folder", folder);
    else
      line("temporary folder", folder + " cannot be written: workers get no error files");
  }

  // In a process of its own: loading LibTorch takes a while, may fail, and is not to be undone.
  std::string load(const std::string& library) {
    auto pipe = make_pipe();
    std::fflush(nullptr);
    pid_t pid = fork();
    if (pid == 0) {
      bool loaded = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) != nullptr;
      const char* error = loaded ? nullptr : dlerror();
      std::string text = loaded ? where_torch_is() : error ? error : "it cannot be loaded";
      [[maybe_unused]] auto written = write(pipe.write.get(), text.data(), text.size());
      _exit(loaded ? 0 : 1);
    }
    if (pid < 0) return std::string("no ") + std::strerror(errno);
    pipe.write.reset();
    // A file system that does not answer must not hold us up.
    constexpr int kLoadMilliseconds = 60000;
    pollfd entry{.fd = pipe.read.get(), .events = POLLIN, .revents = 0};
    bool in_time = poll(&entry, 1, kLoadMilliseconds) > 0;
    if (!in_time) kill(pid, SIGKILL);
    std::string text(4096, '\0');
    ssize_t size = in_time ? read(pipe.read.get(), text.data(), text.size()) : 0;
    text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
    int status = 0;
    waitpid(pid, &status, 0);
    bool loaded = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (!in_time) text = "it was not loaded within a minute";
    return (loaded ? "ok " : "no ") + text;
  }

  static std::string where_torch_is() {
    std::ifstream maps("/proc/self/maps");
    for (std::string entry; std::getline(maps, entry);)
      if (entry.ends_with("/libtorch_cpu.so")) return entry.substr(entry.find('/'));
    return "";
  }

  std::string find_library(const std::string& name) {
    auto folder = own_folder();
    for (const auto& place : {"/", "/../", "/../lib/", "/../lib64/", "/../lib/x86_64-linux-gnu/"})
      if (access((folder + place + name).c_str(), R_OK) == 0) return folder + place + name;
    return "";
  }

  void examine_libraries() {
    title("Libraries");
    auto library = find_library("libtorchfabric.so");
    if (library.empty()) {
      line("libtorchfabric.so", "not beside this program; other programs can be launched");
      return;
    }
    auto answer = load(library);
    if (answer.starts_with("ok")) {
      line("libtorchfabric.so", library);
      line("LibTorch", answer.substr(3));
    } else {
      fault("libtorchfabric.so", "does not load: " + answer.substr(3));
    }
    line("backend gloo", "yes, part of the library");
    auto mpi = find_library("libtorchfabric_mpi.so"), cuda = find_library("libtorchfabric_cuda.so");
    line("backend mpi", mpi.empty() ? "no libtorchfabric_mpi.so" : mpi);
    line("backend nccl", cuda.empty() ? "no libtorchfabric_cuda.so" : cuda);
  }

  // What can be chosen by name: what does without LibTorch from here, all of it from a program beside this one.
  void list_parts() {
    title("Parts that can be chosen by name");
    auto program = own_folder() + "/fabric-parts";
    if (auto text = access(program.c_str(), X_OK) == 0 ? output_of(program) : std::nullopt) {
      show_parts(*text);
      return;
    }
    available_environments();
    available_loggers();
    std::string text;
    for (const auto& [kind, parts] : registered_parts())
      for (const auto& [name, description] : parts) text += kind + '\t' + name + '\t' + description + '\n';
    show_parts(text);
    line("others", "not known: " + program + " is missing or does not run");
  }

  // Lines of kind, name and description, with tabs between them, in the order of kinds.
  void show_parts(const std::string& text) {
    constexpr std::size_t kWidth = 90;
    std::string kind, names;
    auto flush = [&] {
      if (!names.empty()) line(kind.c_str(), names);
      names.clear();
    };
    std::istringstream lines(text);
    for (std::string entry; std::getline(lines, entry);) {
      auto tab = entry.find('\t'), next = entry.find('\t', tab + 1);
      if (next == std::string::npos) continue;
      auto name = entry.substr(tab + 1, next - tab - 1);
      if (entry.substr(0, tab) != kind) flush();
      bool wraps = names.size() + name.size() > kWidth;
      if (wraps) flush();
      kind = wraps && entry.substr(0, tab) == kind ? "" : entry.substr(0, tab);
      names += (names.empty() ? "" : ", ") + name;
    }
    flush();
  }

  // What a program prints, if it ends well within half a minute.
  static std::optional<std::string> output_of(const std::string& program) {
    auto pipe = make_pipe();
    std::fflush(nullptr);
    pid_t pid = fork();
    if (pid == 0) {
      dup2(pipe.write.get(), STDOUT_FILENO);
      execl(program.c_str(), program.c_str(), nullptr);
      _exit(127);
    }
    if (pid < 0) return std::nullopt;
    pipe.write.reset();
    std::string text;
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    for (char buffer[4096];;) {
      auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
      pollfd poll_read{.fd = pipe.read.get(), .events = POLLIN, .revents = 0};
      if (left <= 0 || poll(&poll_read, 1, static_cast<int>(left)) == 0) {
        kill(pid, SIGKILL);
        break;
      }
      ssize_t size = read(pipe.read.get(), buffer, sizeof buffer);
      if (size == 0) break;
      if (size > 0) text.append(buffer, static_cast<std::size_t>(size));
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? std::optional(text) : std::nullopt;
  }

  void examine_devices() {
    title("Devices");
    const auto usable = run::usable_processors().size();
    const auto quota = container::processors();
    line("processors",
         std::to_string(usable) + " usable by this process" +
             (quota && *quota < static_cast<int>(usable) ? "; its container has the time of " + std::to_string(*quota)
                                                         : ""));
    const auto limit = container::memory_limit();
    line("memory", std::to_string(sysconf(_SC_PHYS_PAGES) / 1024 * (sysconf(_SC_PAGE_SIZE) / 1024) / 1024) + " GiB" +
                       (limit ? "; its container may use " + std::to_string(*limit >> 20) + " MiB" : ""));
    int gpus = run::count_gpus(*env_);
    auto visible = env_->get("CUDA_VISIBLE_DEVICES");
    line("NVIDIA GPUs", std::to_string(gpus) + (visible ? " (CUDA_VISIBLE_DEVICES=" + *visible + ")" : ""));
  }

  void examine_network() {
    title("Network");
    ifaddrs* all = nullptr;
    if (getifaddrs(&all) == 0)
      for (auto* at = all; at; at = at->ifa_next) {
        if (!at->ifa_addr || !(at->ifa_flags & IFF_UP)) continue;
        char text[INET6_ADDRSTRLEN] = "";
        if (at->ifa_addr->sa_family == AF_INET)
          inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(at->ifa_addr)->sin_addr, text, sizeof text);
        else if (at->ifa_addr->sa_family == AF_INET6)
          inet_ntop(AF_INET6, &reinterpret_cast<sockaddr_in6*>(at->ifa_addr)->sin6_addr, text, sizeof text);
        if (*text) line(at->ifa_name, text);
      }
    if (all) freeifaddrs(all);
    try {
      line("free port", "yes, for instance " + std::to_string(PortReservation().port()));
    } catch (const Error& error) {
      fault("free port", error.what());
    }
  }

  std::string on_path(const std::string& name) {
    std::istringstream folders(env_->get_or("PATH", ""));
    for (std::string folder; std::getline(folders, folder, ':');)
      if (access((folder + "/" + name).c_str(), X_OK) == 0) return folder + "/" + name;
    return "";
  }

  void examine_tools() {
    title("Other launchers and tools");
    for (const char* name : {"mpirun", "srun", "python3", "gdb", "eu-stack"}) {
      auto path = on_path(name);
      line(name, path.empty() ? "no" : path);
    }
    if (auto job = env_->get("SLURM_JOB_ID"))
      line("SLURM job", *job + (env_->has("SLURM_STEP_ID") ? ", inside of a step" : ", outside of a step"));
  }

  void examine_choice() {
    title("What a run would choose");
    int workers = run::count_workers("auto", *env_);
    int processors = run::count_processors();
    bool gpus = run::count_gpus(*env_) > 0;
    line("--nproc-per-node auto",
         std::to_string(workers) + (gpus ? ", one for each GPU" : ", one for each processor, since there is no GPU"));
    auto threads = env_->get("OMP_NUM_THREADS");
    line("OMP_NUM_THREADS",
         threads ? *threads + ", set already"
                 : std::to_string(std::max(1, processors / workers)) + ", processors divided by workers");
    line("accelerator", gpus ? "cuda, since there are GPUs" : "cpu, since there is no GPU");
    line("strategy", workers > 1 ? "ddp, since there are several ranks" : "single_device, since there is one rank");
    bool has_nccl = !find_library("libtorchfabric_cuda.so").empty();
    line("process group", gpus && has_nccl ? "nccl, for GPUs"
                          : gpus           ? "gloo, since the library for NCCL is missing; slow for GPUs"
                                           : "gloo, for the CPU; mpi under mpirun");
    examine_requests(gpus);
    line("MASTER_ADDR and _PORT", env_->has("PET_MASTER_PORT")
                                      ? "as PET_MASTER_ADDR and PET_MASTER_PORT say"
                                      : "127.0.0.1 and a free port on one node; 29500 is never taken unasked");
    try {
      auto environment = detect_environment(env_);
      line("this very process", "environment " + environment->name() +
                                    (environment->creates_processes_externally()
                                         ? ", already a rank: " + environment->rank_info().to_string()
                                         : ", no rank of anything"));
    } catch (const Error& error) {
      fault("this very process", error.what());
    }
  }

  // Settings that are exported count for every run.
  void examine_requests(bool gpus) {
    for (const char* name : {"FABRIC_ACCELERATOR", "FABRIC_STRATEGY", "FABRIC_DEVICES", "FABRIC_PRECISION",
                             "PET_NPROC_PER_NODE", "PET_NNODES"})
      if (auto value = env_->get(name)) line(name, *value + ", from the environment, instead of the above");
    auto accelerator = env_->get_or("FABRIC_ACCELERATOR", "");
    if (!gpus && (accelerator == "cuda" || accelerator == "gpu"))
      fault("FABRIC_ACCELERATOR", accelerator + " is asked for, but there is no GPU");
    auto workers = env_->get("PET_NPROC_PER_NODE");
    try {
      if (workers) run::count_workers(*workers, *env_);
    } catch (const Error& error) {
      fault("PET_NPROC_PER_NODE", error.what());
    }
  }

  std::shared_ptr<EnvReader> env_;
  bool healthy_ = true;
};

}  // namespace

int doctor(const std::vector<std::string>& words) {
  if (words.empty()) return Doctor(process_env()).examine();
  if (words[0] == "--help" || words[0] == "-h")
    return std::puts(
               "usage: fabric doctor\n       fabric doctor --hosts HOST,… | --hostfile FILE [--ssh-args ARGUMENTS] "
               "[--copy]\nPrints what is on this machine and what a run would choose; or tries each host as fabric run "
               "--hosts\nwould. Ends with 0 when a run would work, else with 1.") < 0;
  if (!words[0].starts_with("-"))
    throw ConfigError("fabric doctor takes no arguments but flags, and was given '" + words[0] + "'");
  return run::examine_hosts(words);
}

}  // namespace fabric
