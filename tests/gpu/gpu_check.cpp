// What needs a GPU: accelerator, precisions, fused optimizers, checkpoints, DDP over NCCL. Uses the public API only and
// prints a line per check. Ends with 0 when all passed, 1 when one failed, 77 without a GPU.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>
#include <thread>

#include <torch/torch.h>

#include <fabric/accelerators/cuda.h>
#include <fabric/fabric.h>
#include <fabric/optim/clip.h>
#include <fabric/optim/fused.h>
#include <fabric/plugins/precision/mixed_precision.h>
#include <fabric/strategies/summon.h>

#include "tests/support/free_port.h"

namespace {

int failures = 0;

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

// `body` returns what was seen, for the line.
void check(const std::string& name, const std::function<std::string()>& body) {
  try {
    std::string seen = body();
    std::cout << "ok    " << name << (seen.empty() ? "" : ": " + seen) << std::endl;
  } catch (const std::exception& error) {
    ++failures;
    std::cout << "FAIL  " << name << ": " << error.what() << std::endl;
  }
}

template <class... Items>
std::string text(const Items&... items) {
  std::ostringstream out;
  (out << ... << items);
  return out.str();
}

fabric::Fabric::Config on_gpu(const std::string& precision = "", const std::string& strategy = "single_device") {
  return {.accelerator = "cuda", .strategy = strategy, .devices = "0,", .precision = precision};
}

torch::nn::Sequential make_net() {
  torch::manual_seed(0);
  return torch::nn::Sequential(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
}

struct Batch {
  torch::Tensor data, target;
};
Batch make_batch(int rows, int seed) {
  torch::manual_seed(static_cast<std::uint64_t>(seed));
  auto data = torch::randn({rows, 32});
  return {data, data.slice(1, 0, 10).argmax(1)};
}

double largest_difference(const torch::nn::Module& a, const torch::nn::Module& b) {
  double largest = 0;
  auto ours = a.parameters(), theirs = b.parameters();
  for (std::size_t i = 0; i < ours.size(); ++i)
    largest = std::max(largest, (ours[i].detach().cpu() - theirs[i].detach().cpu()).abs().max().item<double>());
  return largest;
}

// --- accelerator

std::string check_accelerator() {
  auto cuda = fabric::make_accelerator("auto");
  require(cuda->name() == "cuda", "auto did not choose cuda but " + cuda->name());
  auto indices = cuda->parse_devices(-1);
  require(static_cast<int>(indices.size()) == cuda->auto_device_count(), "-1 does not mean all devices");
  auto devices = cuda->get_parallel_devices(indices);
  cuda->setup_device(devices[0]);
  cuda->manual_seed(3);
  auto first = torch::rand({8}, devices[0]);
  cuda->manual_seed(3);
  require(torch::equal(first, torch::rand({8}, devices[0])), "seeding does not repeat the random numbers");
  for (const auto& peer : devices) (void)cuda->can_access_peer(devices[0], peer);
  auto name = cuda->device_name(devices[0]);
  require(!name.empty(), "the device has no name");
  return text(indices.size(), " x ", name, ", auto, -1 and seeds");
}

std::string check_memory() {
  auto cuda = fabric::make_accelerator("cuda");
  c10::Device device(torch::kCUDA, 0);
  cuda->setup_device(device);
  cuda->reset_peak_memory(device);
  auto before = cuda->memory_stats(device);
  constexpr std::int64_t kBytes = 64 << 20;
  {
    auto block = torch::empty({kBytes}, torch::dtype(torch::kByte).device(device));
    auto during = cuda->memory_stats(device);
    require(during.allocated_bytes - before.allocated_bytes >= kBytes, "allocated bytes did not grow");
    require(during.reserved_bytes >= during.allocated_bytes, "less is reserved than allocated");
  }
  auto after = cuda->memory_stats(device);
  require(after.peak_allocated_bytes >= before.allocated_bytes + kBytes, "the peak was not seen");
  cuda->empty_cache();
  require(cuda->memory_stats(device).reserved_bytes < after.reserved_bytes, "emptying the cache freed nothing");
  return text("peak ", after.peak_allocated_bytes >> 20, " MiB of ", after.total_bytes >> 30, " GiB");
}

std::string check_streams() {
  auto cuda = fabric::make_accelerator("cuda");
  c10::Device device(torch::kCUDA, 0);
  cuda->setup_device(device);
  auto a = torch::randn({2048, 2048}, device);
  auto expected = a.matmul(a).sum();
  torch::Tensor product;
  {
    auto scope = cuda->side_stream(device);
    product = a.matmul(a);
  }
  require(torch::allclose(product.sum(), expected), "work on a side stream gave another result");
  cuda->synchronize(device);
  return "";
}

// --- precision

std::string check_precision(const std::string& precision) {
  fabric::Fabric fabric(on_gpu(precision));
  fabric.launch();
  auto [model, optimizer] = fabric.setup(make_net(), [](auto parameters) {
    return fabric::optim::AdamW(parameters, fabric::optim::AdamWOptions(1e-2).eps(1e-4));
  });
  auto batch = make_batch(256, 1);
  auto data = fabric.to_device(batch.data), target = fabric.to_device(batch.target);
  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    optimizer.zero_grad();
    auto output = model(data);
    auto loss = torch::nll_loss(torch::log_softmax(output, 1), target);
    fabric.backward(loss);
    fabric.clip_gradients(model, optimizer, {.max_norm = 10.0});
    optimizer.step();
    last = loss.template item<double>();
    if (step == 0) first = last;
  }
  require(std::isfinite(last) && last < 0.5 * first, text("the loss went from ", first, " to ", last));
  fabric.shutdown();
  return text("loss ", first, " -> ", last);
}

std::string check_scaler() {
  auto scaler =
      std::make_shared<fabric::GradScaler>(fabric::GradScaler::Config{.init_scale = 1 << 30, .growth_interval = 5});
  auto precision = std::make_shared<fabric::MixedPrecision>(torch::kHalf, torch::kCUDA, scaler);
  fabric::Fabric fabric(on_gpu(), {.precision = precision});
  fabric.launch();
  auto [model, optimizer] = fabric.setup(
      make_net(), [](auto parameters) { return fabric::optim::SGD(parameters, fabric::optim::SGDOptions(0.01)); });
  auto batch = make_batch(64, 2);
  auto data = fabric.to_device(batch.data), target = fabric.to_device(batch.target);
  int skipped = 0;
  for (int step = 0; step < 60; ++step) {
    optimizer.zero_grad();
    fabric.backward(torch::nll_loss(torch::log_softmax(model(data), 1), target));
    optimizer.step();
    skipped += precision->step_was_skipped();
  }
  require(skipped > 0, "a scale of 2^30 did not overflow");
  require(skipped < 60, "the scale never came down");
  for (const auto& parameter : model->parameters())
    require(parameter.isfinite().all().template item<bool>(), "parameters are not finite");
  auto state = precision->state_dict();
  scaler->load_state_dict(state);
  require(scaler->get_scale() == state.at("scale").as_double(), "the scale was not restored");
  fabric.shutdown();
  return text(skipped, " steps skipped, scale ends at ", scaler->get_scale());
}

// --- optimizers

template <class Fused, class Plain, class Options>
std::string check_fused(const Options& options) {
  c10::Device device(torch::kCUDA, 0);
  auto ours = make_net(), theirs = make_net();
  ours->to(device);
  theirs->to(device);
  Fused fused(ours->parameters(), options);
  Plain plain(theirs->parameters(), options);
  auto batch = make_batch(64, 3);
  auto data = batch.data.to(device), target = batch.target.to(device);
  auto step = [&](torch::nn::Sequential& net, torch::optim::Optimizer& optimizer) {
    optimizer.zero_grad();
    torch::nll_loss(torch::log_softmax(net->forward(data), 1), target).backward();
    optimizer.step();
  };
  // Both start each step from the same numbers: differences in rounding grow over steps, and are not what is measured.
  double largest = 0;
  for (int i = 0; i < 10; ++i) {
    step(ours, fused);
    step(theirs, plain);
    largest = std::max(largest, largest_difference(*ours, *theirs));
    torch::NoGradGuard no_grad;
    auto from = theirs->parameters(), to = ours->parameters();
    for (std::size_t p = 0; p < to.size(); ++p) to[p].copy_(from[p]);
  }
  require(largest <= 1e-6, text("parameters differ by ", largest));
  auto cuda = fabric::make_accelerator("cuda");
  auto time = [&](torch::nn::Sequential& net, torch::optim::Optimizer& optimizer) {
    cuda->synchronize(device);
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 200; ++i) step(net, optimizer);
    cuda->synchronize(device);
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / 200;
  };
  return text("differs by ", largest, ", step ", time(ours, fused), " us against ", time(theirs, plain));
}

std::string check_clip() {
  c10::Device device(torch::kCUDA, 0);
  for (double norm_type : {1.0, 2.0, 3.0, static_cast<double>(INFINITY)}) {
    auto weight = torch::zeros({1000}, torch::device(device).requires_grad(true));
    torch::manual_seed(4);
    auto gradient = torch::randn({1000});
    weight.mutable_grad() = gradient.to(device);
    double expected = torch::norm(gradient, norm_type).item<double>();
    double total = fabric::optim::clip_grad_norm({weight}, 0.5, norm_type).item<double>();
    require(std::abs(total - expected) <= 1e-4 * expected, text("norm ", norm_type, " is ", total, ", not ", expected));
    double clipped = torch::norm(weight.grad().cpu(), norm_type).item<double>();
    require(std::abs(clipped - 0.5) < 1e-3, text("the clipped norm is ", clipped));
  }
  return "norms 1, 2, 3, infinity";
}

// --- checkpoints

std::string check_checkpoint() {
  auto path = std::filesystem::temp_directory_path() / text("fabric_gpu_check_", getpid(), ".safetensors");
  struct Remove {
    std::filesystem::path path;
    ~Remove() { std::filesystem::remove(path); }
  } remove{path};
  auto adamw = [](auto parameters) { return fabric::optim::AdamW(parameters, fabric::optim::AdamWOptions(1e-2)); };
  fabric::Fabric fabric(on_gpu());
  fabric.launch();
  auto batch = make_batch(64, 5);
  auto data = fabric.to_device(batch.data), target = fabric.to_device(batch.target);
  auto [model, optimizer] = fabric.setup(make_net(), adamw);
  auto [other, other_optimizer] = fabric.setup(make_net(), adamw);
  auto step = [&](auto& net, auto& steps) {
    steps.zero_grad();
    fabric.backward(torch::nll_loss(torch::log_softmax(net(data), 1), target));
    steps.step();
  };
  for (int i = 0; i < 3; ++i) step(model, optimizer);
  fabric.save(path, {{"model", model}, {"optimizer", optimizer}});
  fabric::State state{{"model", other}, {"optimizer", other_optimizer}};
  fabric.load(path, state);
  for (const auto& parameter : other->parameters()) require(parameter.is_cuda(), "a loaded parameter left the GPU");
  require(largest_difference(*model, *other) == 0, "loaded parameters differ");
  step(model, optimizer);
  step(other, other_optimizer);
  require(largest_difference(*model, *other) <= 1e-6, "training does not continue as before");
  fabric.shutdown();
  return text(std::filesystem::file_size(path), " bytes, training continues");
}

// --- ranks over NCCL

constexpr int kRanks = 2;

// One rank, alone on what it takes for a node: so all ranks use the first GPU. NCCL refuses two ranks on one GPU unless
// they seem to be on different hosts.
std::string run_rank(int rank, const fabric::Choice& strategy, double bound) {
  fabric::Fabric fabric({.accelerator = "cuda", .strategy = strategy, .devices = 1, .num_nodes = kRanks});
  fabric.launch();
  require(fabric.world_size() == kRanks && fabric.global_rank() == rank, "ranks are numbered wrongly");
  auto sum = fabric.all_reduce(torch::full({3}, rank + 1.0, fabric.device()), fabric::ReduceOp::sum);
  require(torch::equal(sum.cpu(), torch::full({3}, 3.0)), "all_reduce gave a wrong sum");
  auto parts = fabric.all_gather_list(torch::full({rank + 1}, 1.0 * rank, fabric.device()));
  require(parts.size() == kRanks && parts[1].numel() == 2, "all_gather of unequal shapes failed");
  require(fabric.broadcast(fabric::Value("from " + std::to_string(rank)), 1).as_string() == "from 1",
          "broadcast failed");
  fabric.barrier("collectives");

  auto sgd = [](auto parameters) {
    return fabric::optim::SGD(parameters, fabric::optim::SGDOptions(0.1).momentum(0.9));
  };
  auto [model, optimizer] = fabric.setup(make_net(), sgd);
  auto alone = make_net();
  alone->to(fabric.device());
  auto reference = sgd(alone->parameters());
  for (int step = 0; step < 20; ++step) {
    auto whole = make_batch(64, 100 + step);
    auto data = fabric.to_device(whole.data), target = fabric.to_device(whole.target);
    auto loss_of = [](const torch::Tensor& output, const torch::Tensor& wanted) {
      return torch::nll_loss(torch::log_softmax(output, 1), wanted);
    };
    optimizer.zero_grad();
    fabric.backward(
        loss_of(model(data.slice(0, 32 * rank, 32 * rank + 32)), target.slice(0, 32 * rank, 32 * rank + 32)));
    optimizer.step();
    reference.zero_grad();
    loss_of(alone->forward(data), target).backward();
    reference.step();
  }
  auto whole = fabric::summon(model);  // under fsdp
  double difference = largest_difference(*model, *alone);
  whole.close();
  require(difference <= bound, text("parameters differ from one process's by ", difference));
  fabric.barrier("end");
  fabric.shutdown();
  return text(kRanks, " ranks on one GPU, differs from one process by ", difference);
}

[[noreturn]] void become_rank(int rank, const std::string& port, const fabric::Choice& strategy, double bound) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (const auto& [name, value] :
       std::map<std::string, std::string>{{"TORCHELASTIC_RUN_ID", "gpu_check"},
                                          {"MASTER_ADDR", "127.0.0.1"},
                                          {"MASTER_PORT", port},
                                          {"WORLD_SIZE", std::to_string(kRanks)},
                                          {"LOCAL_WORLD_SIZE", "1"},
                                          {"LOCAL_RANK", "0"},
                                          {"RANK", std::to_string(rank)},
                                          {"GROUP_RANK", std::to_string(rank)},
                                          {"GROUP_WORLD_SIZE", std::to_string(kRanks)},
                                          {"NCCL_HOSTID", "gpu_check_" + std::to_string(rank)}})
    setenv(name.c_str(), value.c_str(), 1);
  try {
    std::string seen = run_rank(rank, strategy, bound);
    if (rank == 0) std::cout << "      " << seen << std::endl;
    _exit(0);
  } catch (const std::exception& error) {
    std::cout << "      rank " << rank << ": " << error.what() << std::endl;
    _exit(1);
  }
}

// Forks, and so has to come before anything that initialises CUDA here.
std::string check_ranks(const fabric::Choice& strategy, double bound = 1e-5) {
  constexpr int kSeconds = 240;
  std::string port = std::to_string(free_port());
  std::vector<pid_t> children;
  for (int rank = 0; rank < kRanks; ++rank) {
    pid_t child = fork();
    if (child == 0) become_rank(rank, port, strategy, bound);
    children.push_back(child);
  }
  bool all_well = true;
  auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kSeconds);
  for (pid_t child : children) {
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > deadline) kill(child, SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    all_well = all_well && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  require(all_well, "a rank failed");
  return "all_reduce, all_gather, broadcast, barrier, 20 steps";
}

void check_fsdp() {
  using fabric::Tree;
  auto check_with = [](const std::string& what, Tree::Map settings, double bound = 1e-5) {
    fabric::Choice strategy("fsdp", std::move(settings));
    check("fsdp over NCCL, " + what, [&] { return check_ranks(strategy, bound); });
  };
  for (const char* mode : {"FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD"})
    check_with(mode, Tree::Map{{"sharding_strategy", mode}});
  for (const char* mode : {"HYBRID_SHARD", "_HYBRID_SHARD_ZERO2"})
    check_with(mode, Tree::Map{{"sharding_strategy", mode}, {"device_mesh", Tree::List{2, 1}}});
  check_with("cpu_offload", Tree::Map{{"cpu_offload", true}});
  for (const char* order : {"none", "BACKWARD_PRE", "BACKWARD_POST"})
    check_with(std::string("gathered ahead: ") + order,
               Tree::Map{{"backward_prefetch", order}, {"forward_prefetch", true}, {"limit_all_gathers", false}});
  check_with("one unit", Tree::Map{{"auto_wrap_policy", "none"}});
  // Sixteen bits on the way, of numbers around one.
  Tree::Map low{{"param_dtype", "bf16"}, {"reduce_dtype", "fp32"}, {"output_dtype", "fp32"}};
  check_with("mixed_precision", Tree::Map{{"mixed_precision", low}}, 5e-2);
}

}  // namespace

int main() {
  fabric::CudaAccelerator cuda;
  if (!cuda.is_available()) {
    std::cout << "no GPU here: " << cuda.unavailable_reason() << std::endl;
    return 77;
  }
  check("ddp over NCCL", [] { return check_ranks("ddp"); });
  check_fsdp();
  check("accelerator", check_accelerator);
  check("memory", check_memory);
  check("streams", check_streams);
  for (const char* precision : {"32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"})
    check(std::string("precision ") + precision, [&] { return check_precision(precision); });
  check("gradient scaler", check_scaler);
  check("fused SGD",
        [] { return check_fused<fabric::optim::SGD, torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9)); });
  check("fused Adam",
        [] { return check_fused<fabric::optim::Adam, torch::optim::Adam>(torch::optim::AdamOptions(1e-3)); });
  check("fused AdamW",
        [] { return check_fused<fabric::optim::AdamW, torch::optim::AdamW>(torch::optim::AdamWOptions(1e-3)); });
  check("clipping", check_clip);
  check("save and load", check_checkpoint);
  std::cout << (failures ? std::to_string(failures) + " checks failed" : "all checks passed") << std::endl;
  return failures ? 1 : 0;
}
