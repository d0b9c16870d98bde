#pragma once

#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/config.h>
#include <fabric/data/dataloader.h>
#include <fabric/data/seed.h>
#include <fabric/facade/callback.h>
#include <fabric/facade/wrappers.h>
#include <fabric/launcher/heartbeat.h>
#include <fabric/plugins/loggers/logger.h>
#include <fabric/state/tie.h>
#include <fabric/strategies/registry.h>
#include <fabric/strategies/strategy.h>
#include <fabric/utilities/progress.h>

namespace fabric {

/// How Fabric::clip_gradients bounds the gradients.
struct ClipOptions {
  /// Exactly one of the two: the largest absolute value of an element, or the largest norm of all gradients together.
  std::optional<double> clip_val = {};
  std::optional<double> max_norm = {};
  double norm_type = 2.0;
  bool error_if_nonfinite = true;
};

namespace detail {
// The text of --help for a field of Fabric::Config, with the names that are registered.
FABRIC_API const char* setting_help(const char* field);
}  // namespace detail

/// The thin object a training loop talks to: it owns a strategy and the parts the strategy works with, and forwards to
/// them. Several may live one after another in a process. Not thread-safe: one thread drives it.
class FABRIC_API Fabric {
 public:
  struct Config {
    /// "auto", "cpu", "cuda" or "gpu", or a registered name.
    std::string accelerator = "auto";
    /// "auto" or a name from the StrategyRegistry, with its settings.
    Choice strategy = "auto";
    /// Devices per node: "auto", a count, -1 (all), or indices such as "0,2".
    DeviceSpec devices = {};
    int num_nodes = 1;
    /// "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"; empty: 32-true.
    std::string precision = {};
    /// Empty: the cluster environment is detected.
    std::string environment = {};
    std::string checkpoint_io = "safetensors";
    std::vector<Choice> loggers = {};
    /// How exactly float32 matrices are multiplied: "highest", "high" or "medium", as
    /// torch.set_float32_matmul_precision; empty: as LibTorch has it, "highest". For all of the process.
    std::string float32_matmul_precision = {};
    FABRIC_FIELDS(Config, accelerator, strategy, devices, num_nodes, precision, environment, checkpoint_io, loggers,
                  float32_matmul_precision)
    FABRIC_HELP(Config, (accelerator, detail::setting_help("accelerator")),
                (strategy, detail::setting_help("strategy")), (devices, detail::setting_help("devices")),
                (num_nodes, detail::setting_help("num_nodes")), (precision, detail::setting_help("precision")),
                (environment, detail::setting_help("environment")),
                (checkpoint_io, detail::setting_help("checkpoint_io")), (loggers, detail::setting_help("loggers")),
                (float32_matmul_precision, detail::setting_help("float32_matmul_precision")))
  };
  /// Parts that the caller made. Each replaces its name in the Config; giving both is a ConfigError. Loggers are added
  /// to those of the Config.
  struct Parts {
    std::shared_ptr<fabric::Strategy> strategy = {};
    std::shared_ptr<fabric::Accelerator> accelerator = {};
    std::shared_ptr<fabric::Precision> precision = {};
    std::shared_ptr<ClusterEnvironment> environment = {};
    std::shared_ptr<CheckpointIO> checkpoint_io = {};
    /// A group that exists already, an MPI program's communicator for instance (ProcessGroup::from_mpi_comm).
    ProcessGroup process_group = {};
    std::vector<std::shared_ptr<Callback>> callbacks = {};
    std::vector<std::shared_ptr<Logger>> loggers = {};
    std::shared_ptr<EnvReader> env = {};
  };

  Fabric();
  explicit Fabric(const Config& config);
  Fabric(const Config& config, Parts parts);
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;
  /// Calls shutdown; never throws, never waits for another rank.
  ~Fabric();

  // --- place
  const std::shared_ptr<fabric::Strategy>& strategy() const;
  const std::shared_ptr<fabric::Accelerator>& accelerator() const;
  const std::shared_ptr<fabric::Precision>& precision() const;
  c10::Device device() const;
  int global_rank() const;
  int local_rank() const;
  int node_rank() const;
  int world_size() const;
  bool is_global_zero() const;
  bool launched() const;
  /// On other ranks than 0, loggers that drop what they are given.
  const std::vector<std::shared_ptr<Logger>>& loggers() const;
  /// The first logger; throws MisuseError when there is none.
  Logger& logger() const;
  /// How many modules were set up.
  int models_setup() const;
  /// Everything that was resolved implicitly, one line per item: for logs and bug reports.
  std::string describe() const;

  // --- launch
  /// Joins the job of the launcher that started this process, or starts the other ranks: as copies of this process
  /// where that is safe, by re-executing its command line elsewhere. Calling it again does nothing. Throws MisuseError
  /// for strategies that run a function (spawn, fork).
  void launch();
  /// Runs `function(fabric)` in every rank. Returns what this node's first rank returned under spawn and fork (void or
  /// anything a Value holds), this rank's own result otherwise.
  template <class Function>
  auto launch(Function&& function);

  // --- setup
  // Each throws MisuseError before launch (strategies of one process need none) and after shutdown, and for what is set
  // up already. With several ranks every rank calls them, in the same order.

  /// Returns the wrapped module, or a tuple of it and the wrapped optimizers. Each optimizer is an object the caller
  /// made over the module's parameters, or a function from parameters to an optimizer. A SetupOptions may come last.
  /// Converts the parameters to the precision and moves them to the device, in place; functions get them as they are
  /// then. Throws MismatchError where the ranks' modules differ.
  template <class M, class... Rest>
  auto setup(M&& module, Rest&&... rest);
  /// The module alone; `on_after_setup` is not called.
  template <class M>
  auto setup_module(M&& module, SetupOptions options = {});
  /// Optimizers over parameters of a module that is set up: one wrapped optimizer, or a tuple of them. Throws
  /// MisuseError where the strategy sets up both together.
  template <class... Optimizers>
  auto setup_optimizers(Optimizers&&... optimizers);
  /// A loader over a LibTorch dataset: this rank's share, on this rank's device (fabric/data/dataloader.h). Throws
  /// ConfigError for options that exclude each other.
  template <class Dataset>
  auto setup_dataloader(Dataset&& dataset, DataLoaderOptions options = {});
  /// Several datasets with the same options.
  template <class... Datasets>
  auto setup_dataloaders(const DataLoaderOptions& options, Datasets&&... datasets) {
    return std::make_tuple(setup_dataloader(std::forward<Datasets>(datasets), options)...);
  }
  /// For LibTorch's factories: this rank's device and the precision's type, as in torch::zeros({3},
  /// fabric.tensor_options()).
  at::TensorOptions tensor_options() const;
  /// The precision's dtype for floating tensors that are made until the scope closes without one of their own. LibTorch
  /// has no default device in C++: name it with tensor_options, or move tensors with to_device.
  Scope init_tensor() const;
  /// The same for modules, which setup then moves. `empty_init`: a hint that initial values are not needed; strategies
  /// that build modules without storage use it. Without one of those, modules are initialised by their constructors.
  Scope init_module(std::optional<bool> empty_init = std::nullopt) const;

  // --- the step
  /// `loss.backward()` as strategy and precision need it: scaled, say. Throws what LibTorch throws, and CollectiveError
  /// when ranks that synchronise gradients here fail or leave.
  void backward(const at::Tensor& loss, const BackwardOptions& options = {});
  /// `model` says which model the loss belongs to, for strategies that need to know.
  template <class M>
  void backward(const at::Tensor& loss, const FabricModule<M>& model, const BackwardOptions& options = {}) {
    backward_through(loss, &model.strategy_module(), options);
  }
  /// The norm before clipping when `max_norm` was given, an undefined tensor otherwise.
  template <class M>
  at::Tensor clip_gradients(const FabricModule<M>& model, const FabricOptimizer& optimizer,
                            const ClipOptions& options) {
    return clip(model.strategy_module(), *optimizer, options);
  }
  /// The precision's context (autocast, default dtype) for code that runs outside a wrapped model.
  Scope autocast() const;
  /// Gradients stay local until the scope closes: forward and backward must both be inside.
  template <class M>
  Scope no_backward_sync(const FabricModule<M>& model, bool enabled = true) const {
    return model.strategy_module().no_backward_sync(enabled);
  }
  /// Runs `body`, a training loop over `models`, although the ranks have different numbers of batches: ranks that are
  /// done take part in the others' communication, and all end with the parameters of one that trained longest.
  template <class... M>
  void join(const std::function<void()>& body, const FabricModule<M>&... models) {
    join_models({&models.strategy_module()...}, {}, body);
  }
  template <class... M>
  void join(const std::function<void()>& body, const JoinControl::Options& options, const FabricModule<M>&... models) {
    join_models({&models.strategy_module()...}, options, body);
  }
  /// Moves a tensor, or all tensors in a nested object, to this rank's device; a module (its holder or shared pointer)
  /// in place. Throws MisuseError for a type whose tensors are not known (FABRIC_TENSORS).
  at::Tensor to_device(const at::Tensor& tensor) const;
  template <class T>
  T to_device(T object) const;

  // --- collectives: tensors, numbers, strings, and nested lists and maps of them. Every rank of the group (empty: all
  // ranks) calls them in the same order. Each throws MisuseError before launch, MismatchError on every rank where the
  // ranks' calls, shapes, types or structures differ, and TimeoutError or CollectiveError when a rank does not come.

  /// Waits until every rank is here; the name is for error texts.
  void barrier(const std::string& name = "") const;
  /// What rank `src` has, on every rank; the others' argument is not looked at.
  Value broadcast(const Value& value, int src = 0) const;
  /// Each leaf from all ranks: tensors stacked along a new first dimension of size world_size (also with one process),
  /// or a list by rank where their shapes differ; numbers likewise as one tensor; strings as a list by rank.
  Value all_gather(const Value& value, const ProcessGroup& group = {}, bool sync_grads = false) const;
  /// Stacked along a new first dimension; throws MismatchError when the shapes differ between the ranks.
  at::Tensor all_gather(const at::Tensor& tensor, const ProcessGroup& group = {}, bool sync_grads = false) const;
  /// One tensor per rank; shapes may differ, type and number of dimensions may not.
  std::vector<at::Tensor> all_gather_list(const at::Tensor& tensor, const ProcessGroup& group = {},
                                          bool sync_grads = false) const;
  /// What all ranks made of the batch that `loader` gave last, without the samples that stand at its end a second time
  /// (they pad the last batch, so that all ranks have as many): each tensor's rows in the order in which one process
  /// would have seen them; scalars and numbers as one tensor, one for each rank that had a sample of its own. Lists and
  /// maps keep their form. Throws MisuseError, on every rank, where a tensor has fewer rows than samples are left out.
  template <class Batch>
  Value gather_for_metrics(const DataLoader<Batch>& loader, const Value& value) const {
    return gather_rows(loader.core(), value);
  }
  template <class Batch>
  at::Tensor gather_for_metrics(const DataLoader<Batch>& loader, const at::Tensor& tensor) const {
    return gather_rows(loader.core(), Value(tensor)).template as<at::Tensor>();
  }
  /// A new value; the input stays as it is. Numbers come back as numbers (a mean as float); strings pass through.
  Value all_reduce(const Value& value, ReduceOp op = ReduceOp::mean, const ProcessGroup& group = {}) const;
  at::Tensor all_reduce(const at::Tensor& tensor, ReduceOp op = ReduceOp::mean, const ProcessGroup& group = {}) const;
  /// In place.
  void all_reduce_(at::Tensor& tensor, ReduceOp op = ReduceOp::mean, const ProcessGroup& group = {}) const;
  /// Another name of all_reduce: every rank gets the result.
  Value reduce(const Value& value, ReduceOp op = ReduceOp::mean) const { return all_reduce(value, op); }
  /// Rank 0 (`local`: the first rank of each node) runs `function` before the others do. A failure on any rank is an
  /// error on all.
  void rank_zero_first(const std::function<void()>& function, bool local = false) const;

  // --- checkpoints: every rank calls them. A failure on any rank is an error on all, of the same class.

  /// Writes one file on rank 0, under a temporary name first, so that what was there before stays whole until the new
  /// one is; a `checkpoint_io` that writes parts has every rank write its own. `filter`: which entries of which part
  /// are kept. Throws MisuseError for a filter of a part that is not there.
  void save(const std::filesystem::path& path, const State& state, const StateFilter& filter = {}) const;
  /// The same with options; with SaveOptions{.async = true} it returns when the state has been copied to host memory.
  std::shared_ptr<SaveInProgress> save(const std::filesystem::path& path, const State& state,
                                       const SaveOptions& options) const;
  /// Restores `state` in place and returns what it did not ask for. Throws, with nothing changed on any rank,
  /// CheckpointKeyError when `strict` and keys are missing, unexpected or of another shape, CheckpointCorrupt for a
  /// damaged file.
  Value load(const std::filesystem::path& path, State& state, bool strict = true) const;
  /// The same with options: other names for the tensors of the file, and which of them are restored:
  /// fabric.load(path, state, {.rename = {{"^model\\.encoder\\.", "model.backbone."}}}).
  Value load(const std::filesystem::path& path, State& state, const LoadOptions& options) const;
  /// The whole checkpoint.
  Value load(const std::filesystem::path& path) const;
  /// A file that holds nothing but one module's or optimizer's state. Before launch each rank reads for itself.
  void load_raw(const std::filesystem::path& path, StateEntry object, bool strict = true) const;
  void load_raw(const std::filesystem::path& path, StateEntry object, const LoadOptions& options) const;

  // --- for the launcher: nothing happens where none listens (fabric/launcher/heartbeat.h)
  /// This rank lives.
  void heartbeat() const noexcept { fabric::heartbeat(); }
  /// This rank lives and has come to `step`.
  void heartbeat(std::int64_t step) const noexcept { fabric::heartbeat(step); }
  /// Names what happens until the object goes: auto section = fabric.section("validation", 600).
  Section section(std::string_view name, double seconds = 0) const noexcept { return Section(name, seconds); }

  // --- logs and callbacks
  /// Prints on the first rank of each node.
  template <class... Items>
  void print(const Items&... items) const;
  /// Sends a number, or a tensor of one element, to every logger; on other ranks than 0 nothing happens. Throws
  /// MisuseError for anything else. Without a step loggers count on.
  void log(const std::string& name, const Value& value, std::optional<std::int64_t> step = std::nullopt) const;
  /// Several at one step.
  void log_dict(const std::map<std::string, Value>& metrics, std::optional<std::int64_t> step = std::nullopt) const;
  /// Fires an event of the loop's own on every callback, in the order they were given.
  void call(const std::string& event, const Value::Map& arguments = {});
  /// A progress bar over a range, on rank 0: for (auto& batch : fabric.progress(loader, "epoch ", epoch)).
  template <class Range, class... Label>
  auto progress(Range&& range, const Label&... label) const;

  /// Seeds every generator; see fabric/data/seed.h.
  static std::uint64_t seed_everything(std::optional<std::int64_t> seed = std::nullopt, bool workers = true,
                                       bool verbose = true) {
    return fabric::seed_everything(seed, workers, verbose);
  }

  /// Leaves the job: loggers write what they still hold and are told how the run ended ("failed" while an exception is
  /// on its way, "success" otherwise), the process group is freed. Whatever fails, all of it is tried; then the first
  /// error is thrown. Safe to call twice.
  void shutdown();

 private:
  struct Core;
  using OptimizerPtr = std::shared_ptr<torch::optim::Optimizer>;

  struct SetUp {
    std::shared_ptr<detail::ModuleCore> module;
    std::vector<OptimizerPtr> optimizers;
  };
  SetUp set_up(std::shared_ptr<torch::nn::Module> module, const std::vector<OptimizerSource>& optimizers,
               const SetupOptions& options);
  void after_setup(torch::nn::Module& module);
  FabricOptimizer set_up_optimizer(const OptimizerSource& source);
  FabricOptimizer wrap_optimizer(OptimizerPtr optimizer) const;
  void require_launched(const char* what) const;
  void join_job();
  void silence_loggers();
  void launch_function(const std::function<Value()>& run, bool& ran_here, Value& from_children);
  LoaderContext loader_context() const;
  void backward_through(const at::Tensor& loss, StrategyModule* module, const BackwardOptions& options);
  at::Tensor clip(StrategyModule& module, torch::optim::Optimizer& optimizer, const ClipOptions& options);
  void join_models(const std::vector<StrategyModule*>& modules, const JoinControl::Options& options,
                   const std::function<void()>& body);
  Value gather_rows(const detail::LoaderCore& loader, const Value& value) const;
  void print_line(const std::string& line) const;

  std::unique_ptr<Core> core_;
};

}  // namespace fabric

#include <fabric/facade/fabric_impl.h>
