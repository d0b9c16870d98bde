// A transformer that does not fit one process: parameters, gradients and AdamW's states together are larger than the
// memory that each process allows itself (tensor_limit.h). With FSDP every process has a part of them.
//
//   large_model --fabric.devices 1                     fails, and says what to do
//   large_model                                        trains on two processes, saves every 20 steps
//   large_model --resume out/large_model/last --fabric.devices 3
//   large_model --resume out/large_model/last --fabric.devices 1 --fabric.strategy fsdp_cpu_offload
//   fabric consolidate out/large_model/last model.safetensors     one file, which Python reads as well
//
// Batches depend on the step alone, so that any number of processes goes on where another one stopped. `batch_size`
// must be a multiple of that number.

#include <torch/torch.h>

#include <fstream>

#include <fabric/fabric.h>
#include <fabric/optim/fused.h>
#include <fabric/strategies/fsdp.h>

#include "memory_of_ranks.h"
#include "tensor_limit.h"
#include "transformer.h"

struct Config {
  int steps = 100;
  int batch_size = 6;  // over all processes
  double lr = 1e-3;
  double max_norm = 1.0;
  double limit_mb = 256;
  int save_every = 20;
  int seed = 1;
  TransformerConfig model = {.width = 512, .heads = 8, .layers = 8};
  std::string data = FABRIC_EXAMPLE_DATA "/genesis.txt";
  std::string out = "out/large_model";
  std::string resume;
  fabric::Fabric::Config fabric = {.strategy = "fsdp", .devices = 2, .checkpoint_io = "sharded"};
  FABRIC_FIELDS(Config, steps, batch_size, lr, max_norm, limit_mb, save_every, seed, model, data, out, resume, fabric)
  FABRIC_HELP(Config, (batch_size, "sequences of a step, over all processes together"),
              (limit_mb, "memory for tensors that each process may have, in MB; 0: all that there is"),
              (save_every, "steps between checkpoints"), (resume, "a checkpoint to go on from"),
              (out, "folder of the checkpoints"))
  void validate() const {
    if (batch_size % 6 != 0 || batch_size <= 0)
      throw fabric::ConfigError("batch_size: a multiple of 6, so that one, two, three or six processes share it");
  }
};

torch::Tensor read_codes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  for (char& letter : text) letter = static_cast<char>(letter & 127);
  return torch::from_blob(text.data(), {static_cast<int64_t>(text.size())}, torch::kByte).clone();
}

// This process's part of the windows that step number `step` is about.
torch::Tensor windows(const torch::Tensor& codes, int64_t step, const Config& config, const fabric::Fabric& fabric) {
  const auto length = config.model.context + 1;
  std::vector<torch::Tensor> own;
  for (int64_t i = fabric.global_rank(); i < config.batch_size; i += fabric.world_size()) {
    auto at = (step * config.batch_size + i) * 7919 % (codes.size(0) - length);
    own.push_back(codes.slice(0, at, at + length));
  }
  return torch::stack(own).to(torch::kLong);
}

int64_t bytes_of_state(const torch::nn::Module& module) {
  int64_t bytes = 0;
  for (const auto& parameter : module.parameters())
    bytes += parameter.numel() * static_cast<int64_t>(parameter.element_size());
  return 4 * bytes;  // a parameter, its gradient, and two states of AdamW
}

bool offloads(const fabric::Fabric& fabric) {
  auto fsdp = std::dynamic_pointer_cast<fabric::FSDPStrategy>(fabric.strategy());
  return fsdp && fsdp->config().cpu_offload;
}

int main(int argc, char** argv) {
  auto config = fabric::parse<Config>(argc, argv);
  fabric::Fabric fabric(config.fabric);
  fabric.launch();
  fabric.seed_everything(config.seed);

  auto& tensors = *new TensorLimit(  // tensors may outlive main
      "Share the model out over more processes (--fabric.devices), leave parameters and optimizer in the host's memory "
      "(--fabric.strategy fsdp_cpu_offload), or allow more (--limit_mb)");
  // With FSDP on the meta device: no process ever holds the whole model.
  auto building = std::make_unique<fabric::Scope>(fabric.init_module(/*empty_init=*/true));
  Transformer net(config.model);
  building->close();
  const auto state_bytes = bytes_of_state(*net);
  // Offloaded state is the host's memory; the limit is about what is left, which a GPU would have to hold.
  auto limit = static_cast<int64_t>(1e6 * config.limit_mb);
  if (limit > 0 && offloads(fabric)) limit += state_bytes / fabric.world_size();
  tensors.allow(limit);
  fabric.print("the model's parameters, gradients and AdamW states are ", TensorLimit::mb(state_bytes), " MB; each of ",
               fabric.world_size(), " processes may have ", TensorLimit::mb(limit), " MB");

  auto [model, optimizer] =
      fabric.setup(net, [&](auto parameters) { return fabric::optim::AdamW(parameters, config.lr); });
  auto codes = read_codes(config.data);
  int64_t step = 0;
  if (!config.resume.empty()) {
    fabric::State state = {{"model", model}, {"optimizer", optimizer}, {"step", step}};
    fabric.load(config.resume, state);
    step = state["step"].value()->as_int();
    fabric.print("resumed at step ", step);
  }
  auto save = [&, &model = model, &optimizer = optimizer] {
    fabric.save(config.out + "/last", {{"model", model}, {"optimizer", optimizer}, {"step", step}});
    fabric.print("saved ", config.out, "/last at step ", step);
  };
  while (step < config.steps) {
    auto batch = windows(codes, step, config, fabric);
    auto logits = model(batch.slice(1, 0, -1));
    auto loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), batch.slice(1, 1).flatten());
    fabric.backward(loss);
    fabric.clip_gradients(model, optimizer, {.max_norm = config.max_norm});
    optimizer.step();
    optimizer.zero_grad();
    fabric.print("step ", step, "  loss ", fabric.all_reduce(loss.detach()).template item<double>());
    if (++step % config.save_every == 0 || step == config.steps) save();
  }
  auto most = fabric.all_reduce(fabric::Value(TensorLimit::mb(TensorLimit::most())), fabric::ReduceOp::max).as_double();
  fabric.print("at most ", most, " MB of tensors in a process");
  print_memory_of_ranks(fabric);
}
