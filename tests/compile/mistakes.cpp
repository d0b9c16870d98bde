// What people write by mistake, and what the compiler has to say to it (compile_check.py).
#include <torch/torch.h>

#include <fabric/fabric.h>

struct NetImpl : torch::nn::Module {
  at::Tensor forward(at::Tensor x) { return x; }
};
TORCH_MODULE(Net);

struct Samples : torch::data::datasets::Dataset<Samples> {
  torch::data::Example<> get(std::size_t) override { return {}; }
  std::optional<std::size_t> size() const override { return 1; }
};

// says: "make it with `auto net = std::make_shared<Net>(...)` and write fabric.setup(net, ...)"
void module_on_the_stack(fabric::Fabric& fabric, torch::optim::SGD& sgd) {
  NetImpl net;
  fabric.setup(net, sgd);
}

// says: "setup takes a module holder (TORCH_MODULE), a std::shared_ptr to a module"
void no_module(fabric::Fabric& fabric) { fabric.setup_module(3); }

// says: "after TORCH_MODULE(Net) write fabric::FabricModule<NetImpl>"
void holders_name(fabric::FabricModule<Net>& model) { model.device(); }

// says: "write fabric.setup_dataloader(dataset, {.batch_size = 64, .shuffle = true})"
void loader_of_libtorch(fabric::Fabric& fabric) {
  fabric.setup_dataloader(torch::data::make_data_loader(Samples().map(torch::data::transforms::Stack<>()), 4));
}

// says: "write torch::save(model.module(), path)"
// says: "write torch::save(*optimizer, path)"
void torch_save(const fabric::FabricModule<NetImpl>& model, const fabric::FabricOptimizer& optimizer) {
  torch::save(model, "net.pt");
  torch::save(optimizer, "sgd.pt");
}

// says: "write auto net = model.module(); torch::load(net, path)"
// says: "write torch::load(*optimizer, path)"
void torch_load(fabric::FabricModule<NetImpl>& model, fabric::FabricOptimizer& optimizer) {
  torch::load(model, "net.pt");
  torch::load(optimizer, "sgd.pt");
}
