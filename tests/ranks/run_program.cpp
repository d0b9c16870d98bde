// What a rank of `fabric run` may do, by name: beat, hang, fail. Links no LibTorch.
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>

#include <fabric/base/env_reader.h>
#include <fabric/base/error.h>
#include <fabric/config/parse.h>
#include <fabric/launcher/error_file.h>
#include <fabric/launcher/heartbeat.h>
#include <fabric/launcher/launching.h>
#include <fabric/launcher/preemption.h>
#include <fabric/utilities/progress.h>

namespace {

using fabric::Section;

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

int rank() {
  const char* text = std::getenv("RANK");
  return text ? std::atoi(text) : 0;
}

// All ranks come to step 7; rank 1 hangs on the way to the barrier in which the others wait for it.
[[gnu::noinline]] int hang_before_barrier() {
  for (int step = 0; step < 8; ++step) fabric::heartbeat(step);
  Section outer("epoch");
  if (rank() == 1) {
    Section section("load batch\t3");
    sleep_for(60);
  }
  Section waiting("barrier");
  sleep_for(60);
  return 0;
}

int hang_in_limited_section() {
  fabric::heartbeat(0);
  fabric::heartbeat(1);
  Section section("all_reduce", 0.3);
  // A thread that beats does not excuse a section that lasts.
  for (;; sleep_for(0.02)) fabric::heartbeat();
}

int beat_without_progress() {
  fabric::heartbeat(41);
  std::thread([] {
    for (;; sleep_for(0.02)) fabric::heartbeat();
  }).detach();
  for (std::atomic<long> turns{0};;) turns.fetch_add(1);
}

int start_slowly() {
  { Section section("setup"); }
  fabric::heartbeat(0);
  sleep_for(0.8);
  for (int step = 1; step < 5; ++step) fabric::heartbeat(step);
  return 0;
}

int forbid_retry() {
  std::printf("attempt\n");
  std::fflush(stdout);
  fabric::do_not_retry("the data\nare broken");
  return 1;
}

// The launcher is stopped meanwhile and reads nothing: no call waits, and none allocates.
int flood() {
  std::printf("ready %d\n", fabric::has_heartbeat_listener());
  std::fflush(stdout);
  sleep_for(0.3);
  auto before = mallinfo2().uordblks;
  auto start = std::chrono::steady_clock::now();
  for (int step = 0; step < 20000; ++step) {
    fabric::heartbeat(step);
    Section section("forward", step % 2);
  }
  bool quick = std::chrono::steady_clock::now() - start < std::chrono::seconds(5);
  bool same = mallinfo2().uordblks == before;
  std::printf("quick %d same %d\n", quick, same);
  std::fflush(stdout);
  // What was lost raises no alarm: the last section had a limit of a second, and is over.
  for (int i = 0; i < 15; ++i, sleep_for(0.1)) fabric::heartbeat(20000);
  return quick && same ? 0 : 3;
}

// A helper that beats does not speak for its parent.
int fork_and_hang() {
  fabric::heartbeat(0);
  fabric::heartbeat(1);
  if (fork() == 0)
    for (;; sleep_for(0.02)) fabric::heartbeat();
  sleep_for(60);
  return 0;
}

[[gnu::noinline]] void load_shard(const std::string& name) {
  throw fabric::CheckpointCorrupt("shard '" + name + "' is cut off \xff\n\"after\" 12 bytes");
}

int throw_error() {
  fabric::install_error_file();
  load_shard("ü");
  return 0;
}

int catch_error() {
  try {
    load_shard("x");
  } catch (const std::exception& error) {
    bool first = fabric::write_error_file(error), second = fabric::write_error_file("another", "");
    return first && !second ? 4 : 5;
  }
  return 6;
}

[[gnu::noinline]] void write_through(volatile int* pointer) { *pointer = 1; }

int crash() {
  fabric::install_error_file();
  write_through(reinterpret_cast<volatile int*>(8));
  return 0;
}

int overflow_stack() {
  fabric::install_error_file();
  std::function<int(int)> descend = [&](int depth) {
    volatile char room[4096];
    room[0] = static_cast<char>(depth);
    return descend(depth + 1) + room[0];
  };
  return descend(0);
}

int keep_own_handler() {
  signal(SIGSEGV, [](int) { _exit(42); });
  fabric::install_error_file();
  write_through(nullptr);
  return 0;
}

int throw_in_child() {
  fabric::install_error_file();
  if (fork() == 0) std::abort();
  wait(nullptr);
  return 7;
}

// A helper in a session of its own whose first thread ends while another goes on, which makes it look dead in /proc.
int leave_headless(int code) {
  pid_t pid = fork();
  if (pid == 0) {
    setsid();
    std::thread([] { sleep_for(100); }).detach();
    pthread_exit(nullptr);
  }
  auto path = "/proc/" + std::to_string(pid) + "/stat";
  for (char state = 0; state != 'Z'; sleep_for(0.005)) {
    FILE* file = std::fopen(path.c_str(), "re");
    if (!file || std::fscanf(file, "%*d (%*[^)]) %c", &state) != 1) return 99;
    std::fclose(file);
  }
  std::printf("headless %d\n", pid);
  std::fflush(stdout);
  if (code < 0) sleep_for(100);
  return code;
}

int show_progress() {
  fabric::Progress progress("epoch 1", 30, rank() == 0);
  for (int i = 0; i < 30; ++i, progress.advance()) sleep_for(0.03);
  return 0;
}

// Starts its other rank itself, which writes lines while this one draws.
int launch_and_draw() {
  auto launcher = fabric::make_launcher("popen", {.num_processes = 2}, fabric::process_env());
  launcher->launch();
  if (rank() == 0) {
    show_progress();
    return launcher->join();
  }
  for (int i = 0; i < 20; ++i, sleep_for(0.03)) std::fprintf(stderr, "line %d\n", i);
  return 0;
}

struct Settings {
  int epochs = 1;
  FABRIC_FIELDS(Settings, epochs)
};

int parse_settings() {
  const char* words[] = {"/opt/train", "--epohcs", "3"};
  return fabric::parse<Settings>(3, words).epochs;
}

[[noreturn]] int refuse_setting() { throw fabric::ConfigError("there is no strategy 'dpp'; did you mean 'ddp'?"); }

int refuse_setting_on(const char* rank) {
  if (std::getenv("RANK") == std::string(rank)) refuse_setting();
  sleep_for(60);
  return 0;
}

int note_preemption() {
  fabric::PreemptionSignal preemption({SIGUSR1, SIGUSR2});
  std::printf("ready\n");
  std::fflush(stdout);
  while (!preemption.received()) sleep_for(0.005);
  sleep_for(0.2);
  std::printf("signal %d restarts %d\n", preemption.number(), fabric::restart_count());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<int()>> deeds{
      {"hang", hang_before_barrier},
      {"limit", hang_in_limited_section},
      {"busy", beat_without_progress},
      {"slow", start_slowly},
      {"beat", [] { return fabric::heartbeat(), fabric::heartbeat(1), 0; }},
      {"noretry", forbid_retry},
      {"flood", flood},
      {"fork", fork_and_hang},
      {"throw", throw_error},
      {"throw-number", [] { return fabric::install_error_file(), throw 12, 0; }},
      {"catch", catch_error},
      {"crash", crash},
      {"abort", [] { return fabric::install_error_file(), std::abort(), 0; }},
      {"overflow", overflow_stack},
      {"own-handler", keep_own_handler},
      {"child", throw_in_child},
      {"headless", [] { return leave_headless(0); }},
      {"headless-fails", [] { return leave_headless(9); }},
      {"headless-stays", [] { return leave_headless(-1); }},
      {"progress", show_progress},
      {"launch-progress", launch_and_draw},
      {"parse", parse_settings},
      {"setting", refuse_setting},
      {"setting-1", [] { return refuse_setting_on("1"); }},
      {"setting-handled", [] { return std::set_terminate([] { _exit(43); }), refuse_setting(); }},
      {"preempt", note_preemption},
      {"requeue", [] { return fabric::requeue_job() ? 0 : 8; }}};
  auto found = deeds.find(argc > 1 ? argv[1] : "");
  return found == deeds.end() ? 2 : found->second();
}
