// One header of a helper is enough, whatever the module and the optimizer are held by.
#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <torch/torch.h>

struct NetImpl : torch::nn::Module {};
TORCH_MODULE(Net);

void keep_all(const std::shared_ptr<torch::optim::SGD>& shared, torch::optim::SGD& plain) {
  Net net;
  auto pointer = std::make_shared<NetImpl>();
  fabric::ModelCheckpoint keep({.dirpath = "ckpt", .monitor = "val_loss"});
  keep.update({{"val_loss", 1.0}}, {{"model", net}, {"pointer", pointer}, {"optimizer", plain}, {"shared", shared}});
  keep.update({{"val_loss", 1.0}}, fabric::State{{"model", *net}, {"optimizer", plain}, {"epoch", 1}});
}
