// The release gate: trains each model with each precision and strategy, and compares the losses of every step, and the
// weights in the end, with those of one process, and the losses with those that the Python peer recorded.
//
//   fabric_numerics                                 the whole table
//   fabric_numerics --models digits --strategies ddp --precisions 32-true
//
// Each precision of each strategy is trained by this program run again, since strategies differ in how they start their
// ranks.

#include "tests/numerics/numerics.h"

#include <ATen/autocast_mode.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>

#include <fabric/base/tree_io.h>
#include <fabric/fabric.h>
#include <fabric/optim/clip.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/strategies/dp.h>
#include <fabric/strategies/registry.h>

#include "tests/numerics/models.h"

namespace numerics {
namespace {

namespace fs = std::filesystem;

// What may differ and why. Losses are of the order of 1. Several processes add up gradients in another order than one,
// and pad their sentences to another length; from there rounding errors grow with each step, by the precision's own
// step (10 bits of mantissa in 16-true, 7 in bf16; losses are in float, also of 64-true). Python's SGD and LibTorch's
// are the same to the bit, the rest is the same kernels.
struct Bound {
  const char* precision;
  double one_process;
  double python;
};
constexpr Bound kBounds[] = {{"64-true", 1e-6, 1e-6},   {"32-true", 1e-5, 1e-5},  {"16-true", 5e-2, 5e-2},
                             {"bf16-true", 2e-1, 2e-1}, {"16-mixed", 5e-2, 5e-2}, {"bf16-mixed", 1e-1, 1e-1}};

struct Run {
  std::vector<double> losses;
  torch::Tensor weights;  // all of them, as doubles
};
using Runs = std::map<std::string, Run>;  // by model

struct Difference {
  double largest = 0;
  bool bitwise = true;
  void add(double a, double b) {
    if (a == b || (std::isnan(a) && std::isnan(b))) return;
    bitwise = false;
    largest = std::max(largest, std::abs(a - b));
    if (std::isnan(a) != std::isnan(b)) largest = INFINITY;
  }
};

Difference losses_apart(const std::vector<double>& a, const std::vector<double>& b) {
  Difference difference;
  if (a.size() != b.size()) return {INFINITY, false};
  for (std::size_t i = 0; i < a.size(); ++i) difference.add(a[i], b[i]);
  return difference;
}

Difference apart(const Run& a, const Run& b) {
  Difference difference = losses_apart(a.losses, b.losses);
  difference.add((a.weights - b.weights).abs().max().item<double>(), 0);
  return difference;
}

double bound(const std::string& precision, double Bound::*field) {
  for (const Bound& known : kBounds)
    if (precision == known.precision) return known.*field;
  return 0;  // a new precision must be bitwise until its bound is thought about
}

// --- training

torch::Tensor all_weights(const torch::nn::Module& module) {
  std::vector<torch::Tensor> parts;
  for (const auto& parameter : module.parameters()) parts.push_back(parameter.detach().flatten().to(torch::kDouble));
  return torch::cat(parts);
}

std::vector<std::int64_t> share_of(const Model& model, int step, int rank, int ranks) {
  const std::int64_t share = model.batch / ranks;
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < share; ++i) indices.push_back((step * model.batch + rank * share + i) % model.size());
  return indices;
}

torch::optim::SGD optimizer_of(const Model& model, const std::vector<torch::Tensor>& parameters) {
  std::vector<torch::Tensor> trained;
  for (const auto& parameter : parameters)
    if (parameter.requires_grad()) trained.push_back(parameter);
  return torch::optim::SGD(trained, torch::optim::SGDOptions(model.rate).momentum(0.9));
}

torch::Tensor loss_of(const torch::Tensor& logits, const torch::Tensor& target) {
  return torch::nn::functional::cross_entropy(logits.to(torch::kFloat), target);
}

Run train(fabric::Fabric& fabric, const std::string& name, int steps) {
  auto raw = make_model(name);
  auto [model, optimizer] = fabric.setup(raw, [&](auto parameters) { return optimizer_of(*raw, parameters); });
  Run run;
  for (int step = 0; step < steps; ++step) {
    Batch batch = raw->rows(share_of(*raw, step, fabric.global_rank(), fabric.world_size()));
    auto loss = loss_of(model(batch.inputs), batch.target);
    fabric.backward(loss);
    if (raw->max_norm > 0) fabric.clip_gradients(model, optimizer, {.max_norm = raw->max_norm});
    optimizer.step();
    optimizer.zero_grad();
    run.losses.push_back(fabric.all_reduce(fabric::Value(loss.item<double>())).as_double());
  }
  run.weights = all_weights(*raw);
  return run;
}

// The same without Fabric: what single_device has to be equal to. Nothing where LibTorch alone has no such thing (the
// gradient scaler of 16-mixed).
std::optional<Run> train_plainly(const std::string& name, const std::string& precision, int steps) {
  static const std::map<std::string, torch::Dtype> kTypes = {{"64-true", torch::kDouble},
                                                             {"32-true", torch::kFloat},
                                                             {"16-true", torch::kHalf},
                                                             {"bf16-true", torch::kBFloat16}};
  const bool mixed = precision == "bf16-mixed";
  auto type = kTypes.find(precision);
  if (type == kTypes.end() && !mixed) return std::nullopt;
  const bool is_short = !mixed && c10::elementSize(type->second) == 2;
  auto model = make_model(name);
  if (!mixed) model->to(type->second);
  auto optimizer = optimizer_of(*model, model->parameters());
  Run run;
  for (int step = 0; step < steps; ++step) {
    Batch batch = model->rows(share_of(*model, step, 0, 1));
    if (!mixed)
      for (auto& input : batch.inputs)
        if (input.is_floating_point()) input = input.to(type->second);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, mixed);
    auto logits = model->forward(batch.inputs);
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    auto loss = loss_of(logits, batch.target);
    loss.backward();
    // In 16 bits LibTorch's own rounds the norm of each parameter, and Fabric's does not (precision.md).
    if (model->max_norm > 0 && is_short)
      fabric::optim::clip_grad_norm(model->parameters(), model->max_norm);
    else if (model->max_norm > 0)
      torch::nn::utils::clip_grad_norm_(model->parameters(), model->max_norm);
    optimizer.step();
    optimizer.zero_grad();
    run.losses.push_back(loss.item<double>());
  }
  run.weights = all_weights(*model);
  return run;
}

// --- one precision of one strategy, in a process of its own

fabric::Value to_value(const Runs& runs) {
  fabric::Value::Map out;
  for (const auto& [model, run] : runs)
    out[model] = fabric::Value::Map{{"losses", torch::tensor(run.losses, torch::kDouble)}, {"weights", run.weights}};
  return out;
}

Runs from_value(const fabric::Value& value) {
  Runs runs;
  for (const auto& [model, run] : value.as_map()) {
    auto losses = run.at("losses").as<at::Tensor>();
    runs[model] = {{losses.data_ptr<double>(), losses.data_ptr<double>() + losses.numel()},
                   run.at("weights").as<at::Tensor>().clone()};
  }
  return runs;
}

fabric::Fabric fabric_for(const Config& config) {
  fabric::Fabric::Config settings{.accelerator = "cpu",
                                  .strategy = config.strategies.front(),
                                  .devices = config.processes,
                                  .precision = config.precisions.front()};
  if (config.strategies.front() != "dp") return fabric::Fabric(settings);
  // On the CPU the name stands for ddp: here it is what GPUs get, with two replicas on the CPU.
  settings.strategy = "auto";
  settings.devices = "auto";
  settings.accelerator = "auto";
  return fabric::Fabric(
      settings,
      {.strategy = std::make_shared<fabric::DataParallelStrategy>(std::vector<c10::Device>{at::kCPU, at::kCPU})});
}

int run_one(const Config& config) {
  torch::set_num_threads(1);
  auto fabric = fabric_for(config);
  fabric::Value result = fabric.launch([&config](fabric::Fabric& here) {
    torch::set_num_threads(1);
    Runs runs;
    for (const auto& model : config.models) runs[model] = train(here, model, config.steps);
    return to_value(runs);
  });
  if (fabric.is_global_zero()) fabric::make_checkpoint_io()->save(result, config.single_run);
  return 0;
}

std::optional<Runs> run_in_child(const Config& config, const std::string& strategy, const std::string& precision,
                                 int processes) {
  const fs::path out = fs::temp_directory_path() / ("fabric_numerics_" + std::to_string(getpid()) + ".safetensors");
  fs::remove(out);
  std::string models;
  for (const auto& model : config.models) models += (models.empty() ? "" : ",") + model;
  const std::vector<std::string> words = {fs::read_symlink("/proc/self/exe").string(),
                                          "--strategies",
                                          strategy,
                                          "--precisions",
                                          precision,
                                          "--models",
                                          models,
                                          "--steps",
                                          std::to_string(config.steps),
                                          "--processes",
                                          std::to_string(processes),
                                          "--single_run",
                                          out.string()};
  std::cout.flush();
  const pid_t child = fork();
  if (child == 0) {
    std::vector<char*> argv;
    for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0 || !fs::exists(out)) return std::nullopt;
  Runs runs = from_value(fabric::make_checkpoint_io()->load(out));
  fs::remove(out);
  return runs;
}

// --- the table

// What Python recorded, by "model precision processes".
std::map<std::string, std::vector<double>> recorded(int steps) {
  std::map<std::string, std::vector<double>> out;
  const auto record = fabric::read_tree_file(FABRIC_RECORDED);
  std::cout << "Python peer: lightning " << record.at("lightning").as_string() << " with torch "
            << record.at("torch").as_string() << "\n\n";
  for (const auto& run : record.at("runs").as_list()) {
    auto& losses = out[run.at("model").as_string() + " " + run.at("precision").as_string() + " " +
                       std::to_string(run.at("processes").as_int())];
    for (const auto& loss : run.at("losses").as_list()) losses.push_back(loss.as_double());
    if (losses.size() > static_cast<std::size_t>(steps)) losses.resize(static_cast<std::size_t>(steps));
  }
  return out;
}

class Table {
 public:
  Table() {
    std::cout << "| model | precision | strategy | from one process | allowed | from Python | allowed |\n"
                 "|---|---|---|---|---|---|---|\n";
  }
  void row(const std::string& model, const std::string& precision, const std::string& strategy,
           const std::optional<Difference>& one, double one_bound, const std::optional<Difference>& python,
           double python_bound) {
    std::cout << "| " << model << " | " << precision << " | " << strategy << " | " << cell(one, one_bound) << " | "
              << cell(python, python_bound) << " |" << std::endl;
    ++rows_;
  }
  void failed(const std::string& precision, const std::string& strategy) {
    std::cout << "| | " << precision << " | " << strategy << " | **did not run** | | | |" << std::endl;
    ++bad_;
  }
  int end() const {
    std::cout << "\n"
              << rows_ << " rows, " << (bad_ ? std::to_string(bad_) + " out of bounds" : "all within bounds") << "\n";
    return bad_ || rows_ == 0 ? 1 : 0;
  }

 private:
  std::string cell(const std::optional<Difference>& difference, double allowed) {
    if (!difference) return "– | –";
    const bool good = difference->bitwise || difference->largest <= allowed;
    bad_ += !good;
    char text[64];
    std::snprintf(text, sizeof text, good ? "%.1e" : "**%.1e**", difference->largest);
    char limit[32];
    std::snprintf(limit, sizeof limit, "%.0e", allowed);
    return std::string(difference->bitwise ? "bitwise" : text) + " | " + (allowed > 0 ? limit : "bitwise");
  }
  int rows_ = 0, bad_ = 0;
};

int run_table(const Config& config) {
  torch::set_num_threads(1);
  const auto python = recorded(config.steps);
  auto from_python = [&](const std::string& model, const std::string& precision, int processes, const Run& run) {
    auto found = python.find(model + " " + precision + " " + std::to_string(processes));
    return found == python.end() ? std::nullopt : std::optional(losses_apart(run.losses, found->second));
  };
  Table table;
  for (const auto& precision : config.precisions) {
    auto one = run_in_child(config, "single_device", precision, 1);
    if (!one) {
      table.failed(precision, "single_device");
      continue;
    }
    const double allowed = bound(precision, &Bound::one_process), allowed_python = bound(precision, &Bound::python);
    for (const auto& strategy : config.strategies) {
      // dp is one process as well, with two replicas.
      const int processes = strategy == "single_device" || strategy == "dp" ? 1 : config.processes;
      auto runs = strategy == "single_device" ? one : run_in_child(config, strategy, precision, processes);
      if (!runs) {
        table.failed(precision, strategy);
        continue;
      }
      for (const auto& model : config.models) {
        const Run& run = runs->at(model);
        auto against_python = from_python(model, precision, processes, run);
        if (strategy == "single_device") {
          auto plain = train_plainly(model, precision, config.steps);
          table.row(model, precision, strategy, plain ? std::optional(apart(run, *plain)) : std::nullopt, 0,
                    against_python, allowed_python);
        } else {
          table.row(model, precision, strategy, apart(run, one->at(model)), allowed, against_python, allowed_python);
        }
      }
    }
  }
  return table.end();
}

}  // namespace

int run(Config config) {
  if (!config.single_run.empty()) return run_one(config);
  if (config.models.empty()) config.models = model_names();
  if (config.precisions.empty())
    for (const auto& name : fabric::available_precisions())  // 16-mixed stands for bf16-mixed on the CPU
      if (fabric::make_precision(name)->name() == name) config.precisions.push_back(name);
  if (config.strategies.empty()) config.strategies = fabric::StrategyRegistry::instance().available_strategies();
  return run_table(config);
}

}  // namespace numerics

int main(int argc, char** argv) {
  return numerics::run(
      fabric::parse<numerics::Config>(argc, argv, {.description = "The release gate: ./dev numerics"}));
}
