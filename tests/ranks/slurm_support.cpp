#include "tests/ranks/slurm_support.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

#include <fabric/launcher/launching.h>

namespace slurm_support {
namespace {

const std::vector<std::string> kNodes{"n1", "n2", "gpu-08", "gpu-09"};
constexpr double kPatienceWithSlurm = 60;

bool wait_until(const std::function<bool()>& condition, double seconds = kPatienceWithSlurm) {
  for (double limit = run_support::now() + seconds; run_support::now() < limit; usleep(50000))
    if (condition()) return true;
  return false;
}

std::string short_host_name() {
  char name[256] = "";
  gethostname(name, sizeof name - 1);
  std::string text = name;
  return text.substr(0, text.find('.'));
}

// The nodes' names are known to this process and its children only, as a view of /etc/hosts of their own.
bool make_names_known(const std::string& hosts) {
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  std::ofstream file(hosts);
  file << run_support::read_file("/etc/hosts") << "\n";
  for (const auto& node : kNodes) file << "127.0.0.1 " << node << "\n";
  file.close();
  return mount(hosts.c_str(), "/etc/hosts", nullptr, MS_BIND, nullptr) == 0;
}

}  // namespace

int Output::count(const std::string& part) const {
  int found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

Cluster::Cluster() {
  for (const char* path : {"/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/bin/srun"})
    if (access(path, X_OK) != 0) problem_ = std::string(path) + " is missing (Debian: slurmctld slurmd slurm-client)";
  if (geteuid() != 0) problem_ = "only root can start SLURM's daemons";
  if (problem_.empty() && !make_names_known(folder_ / "hosts")) problem_ = "no mount namespace may be made here";
  if (!problem_.empty()) return;
  write_settings();
  setenv("SLURM_CONF", (folder_ / "slurm.conf").c_str(), 1);
  start();
}

void Cluster::write_settings() const {
  std::filesystem::create_directories(folder_ / "state");
  std::ofstream file(folder_ / "slurm.conf");
  auto set = [&](const std::string& name, const std::string& value) { file << name << "=" << value << "\n"; };
  auto host = short_host_name();
  set("ClusterName", "test");
  set("SlurmctldHost", host + "(127.0.0.1)");
  set("SlurmUser", "root");
  set("SlurmdUser", "root");
  set("AuthType", "auth/none");
  set("CredType", "cred/none");
  // The main port comes from the job's number, which another cluster on this machine may have as well.
  set("FirstJobId", std::to_string(1000 + getpid() % 8000));
  set("StateSaveLocation", folder_ / "state");
  set("SlurmdSpoolDir", folder_ / "spool-%n");
  set("SlurmctldPidFile", folder_ / "controller.pid");
  set("SlurmdPidFile", folder_ / "%n.pid");
  set("SlurmctldLogFile", folder_ / "controller.log");
  set("SlurmdLogFile", folder_ / "%n.log");
  set("SlurmctldPort", std::to_string(fabric::find_free_port()));
  set("ProctrackType", "proctrack/linuxproc");
  set("TaskPlugin", "task/none");
  set("JobAcctGatherType", "jobacct_gather/none");
  set("SelectType", "select/cons_tres");
  set("SelectTypeParameters", "CR_Core");
  set("SchedulerParameters", "batch_sched_delay=0,sched_min_interval=10000,sched_interval=1,bf_interval=1");
  set("MpiDefault", "none");
  set("ReturnToService", "2");
  set("KillWait", std::to_string(kKillWait));
  set("SlurmdParameters", "config_overrides");
  for (const auto& node : kNodes)
    file << "NodeName=" << node << " NodeHostname=" << host << " NodeAddr=127.0.0.1 Port=" << fabric::find_free_port()
         << " CPUs=2 RealMemory=2000 State=UNKNOWN\n";
  file << "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES\n";
}

void Cluster::start() {
  auto daemons = "slurmctld -f $SLURM_CONF";
  shell(daemons);
  for (const auto& node : kNodes) shell("slurmd -f $SLURM_CONF -N " + node);
  if (!wait_until([&] { return shell("srun -Q -N4 -n4 true").code == 0; }, 30))
    problem_ = "SLURM does not come up:\n" + run_support::read_file(folder_ / "controller.log");
}

Cluster::~Cluster() {
  if (geteuid() != 0 || !std::filesystem::exists(folder_ / "slurm.conf")) return;
  shell("scancel --signal=KILL --full -u root; scancel -u root");
  std::vector<int> daemons;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
    if (entry.path().extension() == ".pid") daemons.push_back(std::atoi(run_support::read_file(entry.path()).c_str()));
  for (int pid : daemons)
    if (pid > 1) kill(pid, SIGTERM);
  wait_until(
      [&] {
        for (int pid : daemons)
          if (pid > 1 && kill(pid, 0) == 0) return false;
        return true;
      },
      10);
  for (int pid : daemons)
    if (pid > 1) kill(pid, SIGKILL);
  umount2("/etc/hosts", MNT_DETACH);
}

Output Cluster::shell(const std::string& line) const {
  // Variables of a job around this test would be taken for ours.
  auto command = "unset RANK WORLD_SIZE LOCAL_RANK OMP_NUM_THREADS; exec 2>&1 < /dev/null; timeout 60 sh -c '" + [&] {
    std::string quoted;
    for (char letter : line) quoted += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
    return quoted;
  }() + "'";
  Output output;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return {127, "popen failed"};
  char buffer[4096];
  for (std::size_t size; (size = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.text.append(buffer, size);
  int status = pclose(pipe);
  output.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return output;
}

std::string Cluster::submit(const std::string& script, int nodes, const std::string& flags) {
  std::ofstream(folder_ / "job.sh") << "#!/bin/sh\n" << script << "\n";
  std::filesystem::remove(folder_ / "job.out");
  auto output = shell("cd " + folder_.path() + " && sbatch --parsable --requeue --open-mode=append -o job.out -N" +
                      std::to_string(nodes) + " --ntasks-per-node=1 " + flags + " job.sh");
  return std::to_string(std::atoi(output.text.c_str()));
}

std::string Cluster::output() const { return run_support::read_file(folder_ / "job.out"); }

bool Cluster::wait_for(const std::string& text, int times) const {
  return wait_until([&] { return Output{0, output()}.count(text) >= times; });
}

std::string Cluster::state_of(const std::string& job) const {
  auto text = shell("squeue -h -j " + job + " -o %T").text;
  return text.find("rror") != std::string::npos ? "" : text.substr(0, text.find('\n'));
}

bool Cluster::let_start(const std::string& job) const {
  if (!wait_until([&] { return state_of(job) == "PENDING"; })) return false;
  sleep(2);  // slurmd takes a start within the second of the requeue for a revoked one, and SLURM waits 120 s by itself
  return wait_until([&] { return shell("scontrol update JobId=" + job + " StartTime=now").code == 0; }, 10);
}

bool Cluster::wait_until_gone(const std::string& job) const {
  return wait_until([&] {
    auto state = state_of(job);
    return state.empty() || state == "COMPLETED" || state == "CANCELLED" || state == "FAILED";
  });
}

}  // namespace slurm_support
