// Activation checkpointing without reentrant backward passes, as PyTorch's `use_reentrant=False` does it.
//
// While a region's forward pass runs, each tensor that autograd wants to save is replaced by an empty slot; the
// region's inputs are kept. When the backward pass asks for the first of them, the region runs again, and the k-th
// tensor that autograd saves then fills the k-th slot. With a policy, a client below autograd keeps the results of some
// operators in the first run and hands them out in the second, so that these are not executed again.
//
// LibTorch offers its hooks on saved tensors to Python alone, but asks the engine for them, and lets a program replace
// the engine. Ours is LibTorch's with that one function overridden.
//
// Invariants:
// - Slots belong to saved variables and are referred to weakly: what a graph no longer needs is not filled.
// - Hooks of the first run own the frame, those of the second only point to it: no circle.
// - Autocast keeps no casts of weights inside of a region: the second run would not find those of the first.
// - Inputs are held as autograd holds saved tensors. So a region inside of a region keeps nothing for itself, and a
//   change of an input in place is found.
#include <fabric/strategies/activation.h>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <c10/core/ScalarTypeToTypeMeta.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/saved_variable_hooks.h>

#include <algorithm>
#include <optional>
#include <set>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/scope.h>
#include <fabric/dispatch/operator_hooks.h>

namespace fabric::detail {
namespace activation {

using torch::autograd::SavedVariable;
using torch::autograd::SavedVariableHooks;

struct Slot {
  at::Tensor value;
};

using Devices = std::vector<c10::Device>;

std::string meta_text(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.sizes() << ' ' << tensor.scalar_type() << " on " << tensor.device();
  return text.str();
}

struct Meta {
  std::vector<std::int64_t> sizes;
  c10::ScalarType type;
  c10::Device device;
  explicit Meta(const at::Tensor& tensor)
      : sizes(tensor.sizes().vec()), type(tensor.scalar_type()), device(tensor.device()) {}
  bool fits(const at::Tensor& tensor) const {
    return tensor.sizes() == sizes && tensor.scalar_type() == type && tensor.device() == device;
  }
  std::string text() const {
    std::ostringstream text;
    text << at::IntArrayRef(sizes) << ' ' << type << " on " << device;
    return text.str();
  }
};

// Ends a second run that has all it is run for. No std::exception, so that a region's own handlers let it pass.
struct Enough {};

// The generators that a region may draw from, and their state.
class RandomState {
 public:
  explicit RandomState(const Devices& devices) {
    remember(at::detail::getDefaultCPUGenerator());
    for (auto device : devices)
      if (!device.is_cpu()) remember(at::globalContext().defaultGenerator(device));
  }
  void put() const {
    for (const auto& [generator, state] : states_) swap(generator, state);
  }
  /// Puts the state back until the scope closes; then what was there before.
  Scope restore() const {
    std::vector<std::pair<at::Generator, at::Tensor>> before;
    for (const auto& [generator, state] : states_) before.emplace_back(generator, swap(generator, state));
    return Scope([before = std::move(before)] {
      for (const auto& [generator, state] : before) swap(generator, state);
    });
  }

 private:
  void remember(at::Generator generator) {
    std::lock_guard lock(generator.mutex());
    states_.emplace_back(generator, generator.get_state());
  }
  static at::Tensor swap(at::Generator generator, const at::Tensor& state) {
    std::lock_guard lock(generator.mutex());
    at::Tensor before = generator.get_state();
    generator.set_state(state);
    return before;
  }
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

// Autocast and default dtype, which the thread of a backward pass does not have.
class Surroundings {
 public:
  explicit Surroundings(const Devices& devices) : dtype_(c10::get_default_dtype_as_scalartype()) {
    std::set<c10::DeviceType> types{c10::kCPU};
    for (auto device : devices) types.insert(device.type());
    for (auto type : types) {
      if (!at::autocast::is_autocast_available(type)) continue;
      casts_.push_back({type, at::autocast::get_autocast_dtype(type), at::autocast::is_autocast_enabled(type)});
    }
    for (const auto& client : dispatch::active_clients(dispatch::Level::above_autograd)) clients_.push_back(client);
  }
  Scope restore() const {
    Surroundings before = *this;
    before.read();
    write();
    auto above = std::make_shared<std::vector<std::unique_ptr<dispatch::Activation>>>();
    for (const auto& client : clients_)
      above->push_back(std::make_unique<dispatch::Activation>(dispatch::Level::above_autograd, client));
    return Scope([before, above] {
      while (!above->empty()) above->pop_back();
      before.write();
    });
  }

 private:
  struct Cast {
    c10::DeviceType type;
    c10::ScalarType dtype;
    bool enabled;
  };
  void read() {
    for (auto& cast : casts_)
      cast = {cast.type, at::autocast::get_autocast_dtype(cast.type), at::autocast::is_autocast_enabled(cast.type)};
    cache_ = at::autocast::is_autocast_cache_enabled();
    dtype_ = c10::get_default_dtype_as_scalartype();
  }
  void write() const {
    for (const auto& cast : casts_) {
      at::autocast::set_autocast_enabled(cast.type, cast.enabled);
      at::autocast::set_autocast_dtype(cast.type, cast.dtype);
    }
    at::autocast::set_autocast_cache_enabled(cache_);
    if (dtype_ != c10::get_default_dtype_as_scalartype()) c10::set_default_dtype(c10::scalarTypeToTypeMeta(dtype_));
  }
  std::vector<Cast> casts_;
  bool cache_ = false;
  c10::ScalarType dtype_;
  std::vector<std::shared_ptr<dispatch::Client>> clients_;
};

std::int64_t bytes_of(c10::ArrayRef<c10::IValue> values) {
  std::int64_t bytes = 0;
  for (const auto& value : values)
    if (value.isTensor() && value.toTensor().defined()) bytes += static_cast<std::int64_t>(value.toTensor().nbytes());
  return bytes;
}

// What the policy kept, by operator, in the order of the calls.
class KeptResults {
 public:
  struct Entry {
    bool saved = false;
    bool used = false;
    std::vector<c10::IValue> results;
    std::vector<std::int64_t> versions;
    /// After an operator that draws random numbers: those that follow draw the same ones, though it is not run again.
    std::optional<RandomState> random;
  };
  KeptResults(std::unique_ptr<SavePolicy> policy, std::shared_ptr<CheckpointReport> report, Devices devices)
      : policy_(std::move(policy)), report_(std::move(report)), devices_(std::move(devices)) {}

  void first_run(dispatch::OperatorCall& call) {
    std::vector<c10::IValue> inputs = call.arguments().vec();
    call.proceed();
    Entry entry;
    entry.saved = !has_aliases(call.op()) && policy_->save(call.op(), inputs, call.results());
    if (entry.saved)
      for (c10::IValue result : call.results()) {
        if (result.isTensor() && result.toTensor().defined()) {
          result = result.toTensor().detach();
          entry.versions.push_back(static_cast<std::int64_t>(result.toTensor()._version()));
        } else {
          entry.versions.push_back(0);
        }
        entry.results.push_back(std::move(result));
      }
    if (entry.saved && call.op().hasTag(at::Tag::nondeterministic_seeded)) entry.random.emplace(devices_);
    auto name = name_of(call.op());
    if (report_) {
      auto& count = report_->operators[name];
      ++(entry.saved ? count.saved : count.recomputed);
      count.saved_bytes += bytes_of(entry.results);
    }
    entries_[name].push_back(std::move(entry));
  }

  void begin_second_run() { next_.clear(); }
  void second_run(dispatch::OperatorCall& call) {
    auto name = name_of(call.op());
    auto& entries = entries_[name];
    std::size_t index = next_[name]++;
    if (index >= entries.size())
      throw MisuseError("checkpoint: when its region ran again, it called " + name +
                        " more often than the first time (" + std::to_string(entries.size()) +
                        "). The function must do the same both times");
    Entry& entry = entries[index];
    if (!entry.saved) return call.proceed();
    if (std::exchange(entry.used, true))
      throw MisuseError("checkpoint: a second backward pass needs what was kept of " + name +
                        ", which is let go after the first. Leave the policy out for regions that are gone through "
                        "several times");
    for (std::size_t i = 0; i < entry.results.size(); ++i)
      if (entry.results[i].isTensor() && entry.results[i].toTensor().defined() &&
          static_cast<std::int64_t>(entry.results[i].toTensor()._version()) != entry.versions[i])
        throw MisuseError("checkpoint: what was kept of " + name +
                          " was changed in place since. Let the policy recompute it, or do not change it");
    if (entry.random) entry.random->put();
    call.answer(std::move(entry.results));
  }

 private:
  static bool has_aliases(const c10::OperatorHandle& op) {
    for (const auto& result : op.schema().returns())
      if (result.alias_info()) return true;
    return op.schema().returns().empty();
  }
  static std::string name_of(const c10::OperatorHandle& op) {
    const auto& overload = op.schema().overload_name();
    return op.schema().name() + (overload.empty() ? "" : "." + overload);
  }
  std::unique_ptr<SavePolicy> policy_;
  std::shared_ptr<CheckpointReport> report_;
  Devices devices_;
  std::map<std::string, std::vector<Entry>> entries_;
  std::map<std::string, std::size_t> next_;
};

struct Recorder : dispatch::Client {
  Recorder(std::shared_ptr<KeptResults> kept, bool again) : kept(std::move(kept)), again(again) {}
  void operator_called(dispatch::OperatorCall& call) override {
    if (call.op().schema().name() == "aten::detach") return call.proceed();
    again ? kept->second_run(call) : kept->first_run(call);
  }
  std::shared_ptr<KeptResults> kept;
  bool again;
};

// One run of a region.
class CheckpointFrame : public std::enable_shared_from_this<CheckpointFrame> {
 public:
  CheckpointFrame(const CheckpointOptions& options, std::unique_ptr<CheckpointRegion> region)
      : options_(options), region_(std::move(region)) {
    Devices devices;
    region_->for_each_input([&](at::Tensor& tensor) {
      if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end())
        devices.push_back(tensor.device());
      requires_grad_.push_back(tensor.requires_grad());
      inputs_.emplace_back(tensor, /*is_output=*/false);
      tensor = at::empty({0}, tensor.options());
    });
    if (options_.preserve_rng_state) random_.emplace(devices);
    surroundings_.emplace(devices);
    if (options_.policy) kept_ = std::make_shared<KeptResults>(options_.policy(), options_.report, devices);
  }

  std::shared_ptr<KeptResults> kept() const { return kept_; }

  std::shared_ptr<Slot> add_slot(const at::Tensor& tensor) {
    auto slot = std::make_shared<Slot>();
    slots_.push_back(slot);
    metas_.emplace_back(tensor);
    return slot;
  }
  /// The content of a slot that the first run made.
  at::Tensor content_of(Slot& slot) {
    if (!slot.value.defined()) run_again();
    if (!slot.value.defined())
      throw MisuseError(
          "checkpoint: its region saved fewer tensors when it ran again than the first time. The function "
          "must do the same both times");
    return std::exchange(slot.value, at::Tensor());
  }
  void fill_next(const at::Tensor& tensor) {
    std::size_t index = filled_++;
    if (index >= slots_.size())
      throw MisuseError("checkpoint: its region saved more tensors when it ran again than the first time (" +
                        std::to_string(slots_.size()) + "). The function must do the same both times");
    if (options_.determinism_check && !metas_[index].fits(tensor))
      throw MisuseError("checkpoint: tensor number " + std::to_string(index) + " that its region saved was " +
                        metas_[index].text() + " in the first run and is " + meta_text(tensor) +
                        " in the second. The function must do the same both times");
    if (auto slot = slots_[index].lock()) slot->value = tensor.detach();
    if (options_.early_stop && !kept_ && filled_ == slots_.size()) throw Enough();
  }

 private:
  void run_again();

  CheckpointOptions options_;
  std::unique_ptr<CheckpointRegion> region_;
  std::vector<SavedVariable> inputs_;
  std::vector<bool> requires_grad_;
  std::optional<RandomState> random_;
  std::optional<Surroundings> surroundings_;
  std::shared_ptr<KeptResults> kept_;
  std::vector<std::weak_ptr<Slot>> slots_;
  std::vector<Meta> metas_;
  std::size_t filled_ = 0;
};

// Which hooks tensors get that are saved on this thread now.
struct Present {
  CheckpointFrame* frame = nullptr;
  bool again = false;
};
thread_local Present present;

class PresentFrame {
 public:
  explicit PresentFrame(Present next) : before_(std::exchange(present, next)) {}
  ~PresentFrame() { present = before_; }
  PresentFrame(const PresentFrame&) = delete;
  PresentFrame& operator=(const PresentFrame&) = delete;

 private:
  Present before_;
};

struct FirstRunHooks : SavedVariableHooks {
  explicit FirstRunHooks(std::shared_ptr<CheckpointFrame> frame) : frame(std::move(frame)) {}
  void call_pack_hook(const at::Tensor& tensor) override { slot = frame->add_slot(tensor); }
  at::Tensor call_unpack_hook() override { return frame->content_of(*slot); }
  std::shared_ptr<CheckpointFrame> frame;
  std::shared_ptr<Slot> slot;
};

struct SecondRunHooks : SavedVariableHooks {
  explicit SecondRunHooks(CheckpointFrame* frame) : frame(frame) {}
  void call_pack_hook(const at::Tensor& tensor) override {
    frame->fill_next(tensor);
    value = tensor.detach();
  }
  at::Tensor call_unpack_hook() override { return value; }
  CheckpointFrame* frame;
  at::Tensor value;
};

struct CheckpointingEngine : torch::autograd::Engine {
  // LibTorch starts the threads of the first engine that runs, one for each device, and of no other. So those of its
  // own engine are started, where they were not, and then these; both wait until there is work.
  CheckpointingEngine() {
    Engine::get_base_engine().initialize_device_threads_pool();
    start_device_threads();
  }
  std::unique_ptr<SavedVariableHooks> get_default_saved_variable_hooks() override {
    if (!present.frame) return Engine::get_default_saved_variable_hooks();
    if (present.again) return std::make_unique<SecondRunHooks>(present.frame);
    return std::make_unique<FirstRunHooks>(present.frame->shared_from_this());
  }
  // Never destroyed: its threads may run until the process ends.
  static torch::autograd::Engine& instance() {
    static auto* engine = new CheckpointingEngine;
    return *engine;
  }
};

void require_engine() {
  static const bool in_python = dlopen("libtorch_python.so", RTLD_LAZY | RTLD_NOLOAD) != nullptr;
  if (in_python)
    throw MisuseError(
        "checkpoint does not work inside Python, whose autograd engine cannot be replaced; use "
        "torch.utils.checkpoint there");
  static const bool installed = (torch::autograd::set_default_engine_stub(&CheckpointingEngine::instance), true);
  static_cast<void>(installed);
}

void CheckpointFrame::run_again() {
  auto self = shared_from_this();
  c10::AutoGradMode with_grad(true);
  std::vector<at::Tensor> inputs;
  for (const auto& input : inputs_) inputs.push_back(input.unpack());
  std::size_t next = 0;
  region_->for_each_input([&](at::Tensor& tensor) {
    tensor = inputs[next].detach().requires_grad_(requires_grad_[next]);
    ++next;
  });
  Scope forget([&] { region_->for_each_input([](at::Tensor& tensor) { tensor = at::empty({0}, tensor.options()); }); });
  Scope random = random_ ? random_->restore() : Scope();
  Scope surroundings = surroundings_->restore();
  filled_ = 0;
  PresentFrame again({this, true});
  std::optional<dispatch::Activation> handing_out;
  if (kept_) {
    kept_->begin_second_run();
    handing_out.emplace(dispatch::Level::below_autograd, std::make_shared<Recorder>(kept_, true));
  }
  try {
    region_->run_again();
  } catch (const Enough&) {
  }
}

}  // namespace activation

struct CheckpointScope::State {
  explicit State(std::shared_ptr<activation::CheckpointFrame> made)
      : frame(std::move(made)), first({frame.get(), false}), cast_cache(at::autocast::is_autocast_cache_enabled()) {
    if (frame->kept())
      recording.emplace(dispatch::Level::below_autograd, std::make_shared<activation::Recorder>(frame->kept(), false));
    at::autocast::set_autocast_cache_enabled(false);
  }
  ~State() { at::autocast::set_autocast_cache_enabled(cast_cache); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  std::shared_ptr<activation::CheckpointFrame> frame;
  activation::PresentFrame first;
  std::optional<dispatch::Activation> recording;
  bool cast_cache;
};

CheckpointScope::CheckpointScope(const CheckpointOptions& options, std::unique_ptr<CheckpointRegion> region) {
  if (!c10::GradMode::is_enabled()) return;
  activation::require_engine();
  state_ = std::make_unique<State>(std::make_shared<activation::CheckpointFrame>(options, std::move(region)));
}
CheckpointScope::~CheckpointScope() = default;

}  // namespace fabric::detail
