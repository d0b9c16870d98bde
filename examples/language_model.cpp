// A character-level transformer on the text of Genesis: the reference load of the benchmarks.
//
//   language_model                                     two processes on the CPU
//   language_model --fabric.precision bf16-mixed --steps 1000
//   language_model --resume out/language_model.safetensors

#include <torch/torch.h>

#include <fstream>

#include <fabric/fabric.h>
#include <fabric/optim/fused.h>

#include "memory_of_ranks.h"
#include "transformer.h"

struct Config {
  int steps = 300;
  int batch_size = 8;  // per process
  int accumulate = 1;  // batches per step
  double lr = 1e-3;
  double max_norm = 1.0;
  int report_every = 50;
  int seed = 1;
  TransformerConfig model;
  std::string data = FABRIC_EXAMPLE_DATA "/genesis.txt";
  std::string out = "out";
  std::string resume;
  fabric::Fabric::Config fabric = {.strategy = "ddp", .devices = 2};
  FABRIC_FIELDS(Config, steps, batch_size, accumulate, lr, max_norm, report_every, seed, model, data, out, resume,
                fabric)
};

// Windows of `length` characters and the same windows one character later.
class Text {
 public:
  Text(const std::string& path, int64_t length) : length_(length) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    std::string text((std::istreambuf_iterator<char>(file)), {});
    codes_ = torch::empty({static_cast<int64_t>(text.size())}, torch::kLong);
    auto codes = codes_.accessor<int64_t, 1>();
    for (size_t i = 0; i < text.size(); ++i) codes[static_cast<int64_t>(i)] = static_cast<unsigned char>(text[i]) & 127;
  }
  torch::data::Example<> get(size_t index) const {
    auto at = static_cast<int64_t>(index) * length_;
    return {codes_.slice(0, at, at + length_), codes_.slice(0, at + 1, at + length_ + 1)};
  }
  size_t size() const { return static_cast<size_t>((codes_.size(0) - 1) / length_); }

 private:
  int64_t length_;
  torch::Tensor codes_;
};

int main(int argc, char** argv) {
  auto config = fabric::parse<Config>(argc, argv);
  fabric::Fabric fabric(config.fabric);
  fabric.launch();
  fabric.seed_everything(config.seed);

  auto [model, optimizer] = fabric.setup(Transformer(config.model),
                                         [&](auto parameters) { return fabric::optim::AdamW(parameters, config.lr); });
  std::size_t batch_size = config.batch_size;
  auto loader = fabric.setup_dataloader(Text(config.data, config.model.context),
                                        {.batch_size = batch_size, .shuffle = true, .drop_last = true});

  int64_t step = 0;
  if (!config.resume.empty()) {
    fabric::State state = {{"model", model}, {"optimizer", optimizer}, {"loader", loader}, {"step", step}};
    fabric.load(config.resume, state);
    step = state["step"].value()->as_int();
    fabric.print("resumed at step ", step);
  }

  double total = 0;
  int64_t batches = 0;
  while (step < config.steps) {
    for (auto& batch : loader) {
      bool last = (batches + 1) % config.accumulate == 0;
      {
        auto no_sync = fabric.no_backward_sync(model, !last);
        auto logits = model(batch.data);
        auto loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), batch.target.flatten());
        fabric.backward(loss / config.accumulate);
        total += loss.template item<double>();
      }
      ++batches;
      if (!last) continue;
      fabric.clip_gradients(model, optimizer, {.max_norm = config.max_norm});
      optimizer.step();
      optimizer.zero_grad();
      if (++step % config.report_every == 0 || step == config.steps) {
        double loss = fabric.all_reduce(fabric::Value(total / static_cast<double>(batches))).as_double();
        fabric.print("step ", step, "  loss ", loss, "  bits per character ", loss / std::log(2.0));
        total = 0;
        batches = 0;
      }
      if (step >= config.steps) break;
    }
  }
  std::string path = config.out + "/language_model.safetensors";
  fabric.save(path, {{"model", model}, {"optimizer", optimizer}, {"loader", loader}, {"step", step}});
  fabric.print("saved ", path);
  print_memory_of_ranks(fabric);
}
