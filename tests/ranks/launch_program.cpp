// A program that launches ranks and then does what its first argument says. Links no LibTorch.
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/launcher/launching.h>
#include <fabric/plugins/environments/cluster_environment.h>

namespace {

using fabric::Launcher;
using fabric::RankInfo;

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

int variable(const char* name, int fallback) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : fallback;
}

Launcher::Config config() {
  Launcher::Config config;
  config.num_processes = variable("TEST_PROCESSES", 2);
  config.main_port = variable("TEST_PORT", 0);
  config.grace_seconds = std::atof(std::getenv("TEST_GRACE") ? std::getenv("TEST_GRACE") : "10");
  return config;
}

int rank() { return variable("RANK", -1); }

// A line with all that a rank was told.
void say_place() {
  std::string line = "place";
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK",
                           "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "FABRIC_LAUNCHED"})
    line += std::string(" ") + name + "=" + (std::getenv(name) ? std::getenv(name) : "-");
  std::cout << line + "\n" << std::flush;
}

// A grandchild that outlives its parent unless somebody ends it.
void start_helper() {
  if (fork() != 0) return;
  for (;;) pause();
}

// What rank 1 does after a launch, by name; the other ranks sleep.
int misbehave(const std::string& what, int argument) {
  if (what == "helper") start_helper();
  if (what == "exit" || what == "helper") return argument;
  if (what == "signal") kill(getpid(), argument);
  if (what == "noisy") {
    for (int i = 1; i <= 40; ++i) std::cerr << "line " << i << "\n";
    std::cerr << "last words";
    return argument;
  }
  if (what == "throw") throw std::runtime_error("deliberate");
  return 0;
}

// popen, unless the test asks for copies.
std::string start_method() {
  const char* kind = std::getenv("TEST_KIND");
  return kind ? kind : "popen";
}

// What stands in the way of a copy, if the test wants something to.
void obstruct(const std::string& obstacle) {
  if (obstacle == "thread") std::thread([] { sleep_for(20); }).detach();
  if (obstacle == "driver" && !dlopen(std::getenv("TEST_DRIVER"), RTLD_NOW)) throw std::runtime_error(dlerror());
}

int popen_then(const std::string& what, int argument) {
  if (const char* obstacle = std::getenv("TEST_OBSTACLE")) {
    std::printf("before launch\n");  // stays in the buffer of a pipe
    obstruct(obstacle);
  }
  fabric::make_launcher(start_method(), config())->launch();
  if (what == "place") return say_place(), 0;
  if (what == "sleep") return sleep_for(argument), 0;
  if (rank() != 1) sleep_for(20);
  return misbehave(what, argument);
}

// Rank 0 goes, in some way, while the others sleep.
int leave_first(const std::string& what, int argument) {
  fabric::make_launcher(start_method(), config())->launch();
  if (rank() != 0) {
    if (what == "stubborn") signal(SIGTERM, SIG_IGN);
    if (what == "stopped") raise(SIGSTOP);
    if (std::getenv("TEST_HELPER")) start_helper();
    sleep_for(20);
    return 0;
  }
  sleep_for(0.3);
  if (what == "throw") throw std::runtime_error("rank 0 gives up");
  if (what == "_exit") _exit(argument);
  if (what == "signal") kill(getpid(), argument);
  return argument;
}

// Rank 1 dies, and rank 0 throws as soon as it sees the connection to it break, as when a collective fails.
int fail_together(const std::string& what) {
  auto* ends = static_cast<const char*>(std::getenv("TEST_FIFO"));
  fabric::make_launcher(start_method(), config())->launch();
  if (rank() == 1) {
    std::ofstream fifo(ends);
    return 9;
  }
  char byte;
  std::ifstream(ends).read(&byte, 1);
  if (what == "exit") return 5;
  throw std::runtime_error("connection closed by peer");
}

// Rank 0 is done at once, the others are not.
int end_late(int argument) {
  fabric::make_launcher(start_method(), config())->launch();
  if (rank() == 0) return 0;
  sleep_for(0.3);
  return argument;
}

bool is_fork = false;

// A fork of rank 0 may end as it likes: the ranks are none of its business.
int fork_and_exit() {
  fabric::make_launcher(start_method(), config())->launch();
  if (rank() != 0) return sleep_for(3), 0;
  pid_t pid = fork();
  if (pid == 0) {
    is_fork = true;
    std::exit(3);
  }
  auto start = std::chrono::steady_clock::now();
  int status = 0;
  waitpid(pid, &status, 0);
  bool quick = std::chrono::steady_clock::now() - start < std::chrono::milliseconds(2500);
  return quick && WEXITSTATUS(status) == 3 ? 0 : 4;
}

int say_detected() {
  auto environment = fabric::detect_environment();
  if (!environment->creates_processes_externally()) fabric::mention_unused_launchers(*fabric::process_env());
  std::cout << (environment->creates_processes_externally() ? "running " : "alone ") +
                   environment->rank_info().to_string() + "\n"
            << std::flush;
  return 0;
}

int launch_twice() {
  auto first = config();
  fabric::make_launcher("popen", first)->launch();
  auto port = std::string(std::getenv("MASTER_PORT"));
  if (rank() == 0) sleep_for(0.2);  // the child has ended by now
  fabric::make_launcher("popen", first)->launch();
  if (port != std::getenv("MASTER_PORT")) return 3;
  auto other = first;
  other.num_processes += 1;
  try {
    fabric::make_launcher("popen", other)->launch();
    return 4;
  } catch (const fabric::MisuseError& error) {
    std::cout << "refused: " << error.what() << std::endl;
  }
  auto info = fabric::detect_environment()->rank_info();
  std::cout << "info " + info.to_string() + "\n" << std::flush;
  return 0;
}

int join_and_tell() {
  auto launcher = fabric::make_launcher(start_method(), config());
  launcher->launch();
  if (rank() != 0) {
    sleep_for(variable("TEST_SLEEP", 0));
    return 0;
  }
  std::cout << "join " << launcher->join() << std::endl;
  try {
    launcher->launch();
  } catch (const fabric::MisuseError& error) {
    std::cout << "refused: " << error.what() << std::endl;
  }
  return 0;
}

std::string describe(const RankInfo& info) { return "ran " + info.to_string() + std::string("\0binary", 7); }

int run_function(const std::string& kind, const std::string& what, int argument) {
  auto launcher = fabric::make_launcher(kind, config());
  if (what == "thread") {
    std::thread other([] { sleep_for(0.5); });
    try {
      launcher->launch_function(describe);
    } catch (const fabric::MisuseError& error) {
      std::cout << "refused: " << error.what() << std::endl;
    }
    other.join();
    return 0;
  }
  if (what == "never" && std::getenv("LOCAL_RANK")) return 0;
  try {
    auto bytes = launcher->launch_function([&](const RankInfo& info) -> std::string {
      if (what == "big") return std::string(8 << 20, 'x');
      if (what == "return" || what == "never") return describe(info);
      if (info.rank != 1) sleep_for(20);
      if (int code = misbehave(what, argument)) _exit(code);
      return "";
    });
    std::cout << "result " << bytes.size() << " " << bytes.substr(0, 60) << std::endl;
  } catch (const fabric::LaunchError& error) {
    std::cout << "failed: " << error.what() << std::endl;
  }
  return 0;
}

// The second function needs the first one's result; a failure in between is caught.
int run_several(const std::string& kind) {
  auto launcher = fabric::make_launcher(kind, config());
  auto first =
      launcher->launch_function([](const RankInfo& info) { return "world" + std::to_string(info.world_size); });
  std::string between;
  try {
    launcher->launch_function([](const RankInfo&) -> std::string { throw std::runtime_error("no"); });
  } catch (const fabric::LaunchError&) {
    between = "caught";
  }
  auto second = launcher->launch_function([&](const RankInfo&) { return first + between + "again"; });
  if (!std::getenv("LOCAL_RANK")) std::cout << "second " << second << std::endl;
  fabric::make_launcher(start_method(), config())->launch();
  std::cout << second + " then rank " + std::to_string(rank()) + "\n" << std::flush;
  return 0;
}

int print_arguments(int argc, char** argv) {
  fabric::make_launcher(start_method(), config())->launch();
  std::string line = "arguments";
  for (int i = 1; i < argc; ++i) line += '|' + std::string(argv[i]);
  std::cout << line + "|\n" << std::flush;
  return 0;
}

int flood(int lines) {
  fabric::make_launcher(start_method(), config())->launch();
  std::string line(5000, static_cast<char>('a' + rank()));
  for (int i = 0; rank() != 0 && i < lines; ++i) std::cerr << line << "\n";
  return 0;
}

}  // namespace

#ifdef __SANITIZE_ADDRESS__
// A fork has none of the threads, and what they held would count as lost there.
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off() { return is_fork; }
#endif

int main(int argc, char** argv) {
  std::string mode = argc > 1 ? argv[1] : "", what = argc > 2 ? argv[2] : "";
  int argument = argc > 3 ? std::atoi(argv[3]) : 0;
  try {
    if (mode == "popen") return popen_then(what, argument);
    if (mode == "leave" && what != "throw") return leave_first(what, argument);
    if (mode == "late") return end_late(std::atoi(what.c_str()));
    if (mode == "forked") return fork_and_exit();
    if (mode == "detect") return say_detected();
    if (mode == "twice") return launch_twice();
    if (mode == "join") return join_and_tell();
    if (mode == "spawn" || mode == "fork") return run_function(mode, what, argument);
    if (mode == "several") return run_several(what);
    if (mode == "arguments") return print_arguments(argc, argv);
    if (mode == "flood") return flood(std::atoi(what.c_str()));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
  }
  if (mode == "leave") return leave_first(what, argument);
  if (mode == "together") return fail_together(what);
  std::cerr << "unknown mode\n";
  return 2;
}
