#include "launcher/run/mpirun.h"

#include "launcher/run/machine.h"
#include "launcher/run/program.h"

namespace fabric::run {
namespace {

std::vector<std::string> binding(const std::string& bind_to, int ranks, int processors) {
  // Open MPI binds to one core by default, where all threads of LibTorch would then sit.
  if (bind_to == "none" || ranks > processors) return {"--bind-to", "none"};
  if (bind_to == "core") return {"--map-by", "slot:PE=" + std::to_string(processors / ranks)};
  return {"--bind-to", bind_to};
}

}  // namespace

Options with_mpirun(Options options, const EnvReader& env) {
  int ranks = count_workers(options.nproc, env), processors = count_processors();
  auto program = find_program(options, env.get_or("PATH", "/usr/local/bin:/usr/bin:/bin"));
  std::vector<std::string> line{"mpirun", "-n", std::to_string(ranks * options.max_nodes)};
  if (options.max_nodes > 1) {
    line.insert(line.end(), {"--map-by", "ppr:" + std::to_string(ranks) + ":node"});
  } else {
    if (ranks > processors) line.push_back("--oversubscribe");
    auto bound = binding(options.bind_to, ranks, processors);
    line.insert(line.end(), bound.begin(), bound.end());
  }
  for (const auto& [name, value] : options.variables) line.insert(line.end(), {"-x", name});
  // mpirun warns of a variable that is not there.
  const std::pair<const char*, bool> handed_on[] = {{"OMP_NUM_THREADS", true},
                                                    {"FABRIC_ACCELERATOR", !options.accelerator.empty()},
                                                    {"FABRIC_STRATEGY", !options.strategy.empty()},
                                                    {"FABRIC_DEVICES", !options.devices.empty()},
                                                    {"FABRIC_PRECISION", !options.precision.empty()}};
  for (const auto& [name, is_given] : handed_on)
    if (options.max_nodes > 1 && (is_given || env.has(name))) line.insert(line.end(), {"-x", name});
  line.push_back(program.path);
  line.insert(line.end(), program.arguments.begin() + 1, program.arguments.end());
  options.command = line;
  options.is_module = false;
  options.no_python = true;
  options.bind_to = "none";
  options.mpi_ranks = ranks;
  options.nproc = "1";
  try {
    find_program(options, env.get_or("PATH", "/usr/local/bin:/usr/bin:/bin"));
  } catch (const ProgramError&) {
    throw UnavailableError(
        "--mpi needs mpirun on the search path (Debian: apt-get install openmpi-bin), or run without --mpi");
  }
  return options;
}

}  // namespace fabric::run
