// Trains a small convolutional network on handwritten digits: the whole of Fabric in one page of a training loop.
//
//   digits                                          two processes on the CPU
//   digits --fabric.strategy single_device          one process, same order of the data
//   digits --help                                   every setting
//
// The loop below is what you would write anyway; the lines that mention `fabric` are all that is added.

#include <torch/torch.h>
#include <zlib.h>

#include <fabric/fabric.h>
#include <fabric/utilities/learning_curve.h>

struct Config {
  int epochs = 12;
  double lr = 2e-3;
  int batch_size = 64;  // over all processes together
  int seed = 42;
  std::string data = FABRIC_EXAMPLE_DATA "/digits.csv.gz";
  std::string out = "out";
  fabric::Fabric::Config fabric = {.strategy = "ddp", .devices = 2};
  FABRIC_FIELDS(Config, epochs, lr, batch_size, seed, data, out, fabric)
};

// 1,797 images of 8 × 8 pixels. Every fifth one is for testing.
class Digits : public torch::data::datasets::Dataset<Digits> {
 public:
  Digits(const std::string& path, bool train) {
    gzFile file = gzopen(path.c_str(), "rb");
    if (!file) throw std::runtime_error("cannot read " + path);
    std::vector<float> pixels;
    std::vector<int64_t> labels;
    char line[512];
    for (int row = 0; gzgets(file, line, sizeof line); ++row) {
      if ((row % 5 != 4) != train) continue;
      char* at = line;
      for (int i = 0; i < 64; ++i) pixels.push_back(std::strtof(at, &at) / 16), ++at;
      labels.push_back(std::strtol(at, &at, 10));
    }
    gzclose(file);
    images_ = torch::tensor(pixels).view({-1, 1, 8, 8});
    labels_ = torch::tensor(labels);
  }
  torch::data::Example<> get(size_t index) override {
    return {images_[static_cast<int64_t>(index)], labels_[static_cast<int64_t>(index)]};
  }
  torch::optional<size_t> size() const override { return labels_.size(0); }

 private:
  torch::Tensor images_, labels_;
};

struct NetImpl : torch::nn::Module {
  NetImpl() {
    conv1 = register_module("conv1", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 16, 3).padding(1)));
    conv2 = register_module("conv2", torch::nn::Conv2d(torch::nn::Conv2dOptions(16, 32, 3).padding(1)));
    fc1 = register_module("fc1", torch::nn::Linear(32 * 4 * 4, 64));
    fc2 = register_module("fc2", torch::nn::Linear(64, 10));
  }
  torch::Tensor forward(torch::Tensor x) {
    x = torch::relu(conv1(x));
    x = torch::max_pool2d(torch::relu(conv2(x)), 2);
    return torch::log_softmax(fc2(torch::relu(fc1(x.flatten(1)))), 1);
  }
  torch::nn::Conv2d conv1{nullptr}, conv2{nullptr};
  torch::nn::Linear fc1{nullptr}, fc2{nullptr};
};
TORCH_MODULE(Net);

template <class Model, class Loader>
double accuracy(fabric::Fabric& fabric, Model& model, Loader& loader) {
  torch::NoGradGuard no_grad;
  model->eval();
  int64_t right = 0, seen = 0;
  for (auto& batch : loader) {
    right += model(batch.data).argmax(1).eq(batch.target).sum().template item<int64_t>();
    seen += batch.target.size(0);
  }
  model->train();
  using fabric::ReduceOp;
  return fabric.all_reduce(fabric::Value(right), ReduceOp::sum).as_double() /
         fabric.all_reduce(fabric::Value(seen), ReduceOp::sum).as_double();
}

int main(int argc, char** argv) {
  auto config = fabric::parse<Config>(argc, argv);
  fabric::Fabric fabric(config.fabric);
  fabric.launch();
  fabric.seed_everything(config.seed);

  auto [model, optimizer] =
      fabric.setup(Net(), [&](auto parameters) { return torch::optim::AdamW(parameters, config.lr); });
  std::size_t per_rank = config.batch_size / fabric.world_size();
  auto train = fabric.setup_dataloader(Digits(config.data, true), {.batch_size = per_rank, .shuffle = true});
  auto test = fabric.setup_dataloader(Digits(config.data, false), {.batch_size = 180});

  fabric::LearningCurve curve("digits: " + std::to_string(fabric.world_size()) + " process(es)");
  double best = 0;
  for (int epoch = 0; epoch < config.epochs; ++epoch) {
    double total = 0;
    for (auto& batch : fabric.progress(train, "epoch ", epoch)) {
      optimizer.zero_grad();
      auto loss = torch::nll_loss(model(batch.data), batch.target);
      fabric.backward(loss);
      optimizer.step();
      total += loss.item<double>();
    }
    double loss = fabric.all_reduce(fabric::Value(total / train.size())).as_double();
    best = accuracy(fabric, model, test);
    curve.add("training loss", epoch, loss);
    curve.add("test accuracy", epoch, best);
    fabric.print("epoch ", epoch, "  loss ", loss, "  test accuracy ", 100 * best, " %");
  }

  std::string path = config.out + "/digits.safetensors";
  fabric.save(path, {{"model", model}, {"optimizer", optimizer}, {"accuracy", best}});

  // The file alone is enough to go on: load it into the model again and see that nothing changed.
  fabric::State state = {{"model", model}, {"accuracy", 0.0}};
  fabric.load(path, state);
  if (accuracy(fabric, model, test) != state["accuracy"].value()->as_double()) {
    fabric.print("the loaded model differs from the saved one");
    return 1;
  }
  if (fabric.is_global_zero()) {
    curve.print();
    curve.write_svg(config.out + "/digits.svg");
  }
  fabric.print("test accuracy ", 100 * best, " % with ", fabric.world_size(), " process(es), strategy ",
               fabric.strategy()->name(), "\nlearning curve: ", config.out, "/digits.svg\nmodel:          ", path,
               "\nIn Python: safetensors.torch.load_file(\"", path, "\")[\"model.fc2.weight\"]");
  return best >= 0.96 ? 0 : 1;
}
