// One boxed fallback per dispatch key, registered when it is first needed, and behind it the clients that are active on
// the calling thread. LibTorch carries two things from thread to thread, into autograd's threads above all: the set of
// included keys, and ThreadLocalDebugInfo. The key switches the fallback on, the debug info holds the list of clients.
//
// Invariants:
// - A list never changes; an activation pushes a new one. Whoever took over a thread's state keeps the list alive.
// - While a client runs, both keys are excluded: nothing that it calls comes back to clients.
// - While the kernel runs, its own level stays excluded, since what a kernel calls inside is not the model's call; the
//   other level is as it was.
// - A marked tensor carries the key of the upper level in its own key set, which views and detached aliases take over:
// so
//   its operators come here without any activation. Standing clients are for those; their list only grows.
// - Below autograd an operator that is made of others shows its parts. With autograd it is taken apart before it comes
//   here, without (inference mode) it is not, and is passed on with the key still included.
#include <fabric/dispatch/operator_hooks.h>

#include <atomic>
#include <mutex>
#include <string>

#include <ATen/core/TensorBase.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <fabric/base/error.h>

namespace fabric::dispatch {
namespace {

constexpr c10::DispatchKey key_of(Level level) {
  return level == Level::above_autograd ? c10::DispatchKey::DeferredInit : c10::DispatchKey::Fake;
}
using Clients = std::vector<std::shared_ptr<Client>>;

// A longer list takes its place; what threads may still be reading is never freed.
std::atomic<const Clients*>& standing_clients() {
  static std::atomic<const Clients*> list{new Clients};
  return list;
}

constexpr Level other(Level level) {
  return level == Level::above_autograd ? Level::below_autograd : Level::above_autograd;
}

struct ActiveClients final : c10::DebugInfoBase {
  std::vector<std::shared_ptr<Client>> levels[2];
  std::vector<std::shared_ptr<Client>>& at(Level level) { return levels[static_cast<int>(level)]; }
  const std::vector<std::shared_ptr<Client>>& at(Level level) const { return levels[static_cast<int>(level)]; }
};

// The one kind of each supported version of LibTorch that nothing in it uses. Others may use it for things of their
// own.
c10::DebugInfoKind slot() { return c10::DebugInfoKind::TEST_INFO; }

const ActiveClients* current() { return dynamic_cast<const ActiveClients*>(c10::ThreadLocalDebugInfo::get(slot())); }

std::shared_ptr<c10::DebugInfoBase> with(Level level, std::shared_ptr<Client> client) {
  if (!client) throw MisuseError("dispatch: an activation without a client");
  auto list = std::make_shared<ActiveClients>();
  if (const auto* before = current()) *list = *before;
  auto& clients = list->at(level);
  for (const auto& known : clients)
    if (known == client) return list;
  if (client->kind()) std::erase_if(clients, [&](const auto& known) { return known->kind() == client->kind(); });
  clients.push_back(std::move(client));
  return list;
}

// Keeps a key excluded, or not, until the end of the block.
class Exclusion {
 public:
  Exclusion(c10::DispatchKey key, bool excluded) : key_(key), before_(c10::impl::tls_is_dispatch_key_excluded(key)) {
    if (before_ != excluded) c10::impl::tls_set_dispatch_key_excluded(key, excluded);
  }
  ~Exclusion() { c10::impl::tls_set_dispatch_key_excluded(key_, before_); }
  Exclusion(const Exclusion&) = delete;
  Exclusion& operator=(const Exclusion&) = delete;

 private:
  c10::DispatchKey key_;
  bool before_;
};

bool consists_of_others(const c10::OperatorHandle& op, c10::DispatchKeySet keys) {
  return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
         !op.hasKernelForDispatchKey(keys.highestPriorityTypeId());
}

}  // namespace

class Room {
 public:
  template <Level level>
  static void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, std::vector<c10::IValue>* stack) {
    keys = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, key_of(level));
    if (level == Level::below_autograd && consists_of_others(op, keys)) return op.redispatchBoxed(keys, stack);
    Exclusion own(key_of(level), true);
    const auto* active = current();
    c10::ArrayRef<std::shared_ptr<Client>> clients, standing;
    if (active) clients = active->at(level);
    if (level == Level::above_autograd) standing = *standing_clients().load(std::memory_order_acquire);
    if (clients.empty() && standing.empty()) return op.redispatchBoxed(keys, stack);
    OperatorCall call(op, keys, *stack, clients, standing, key_of(other(level)));
    call.proceed();
    if (!call.done_)
      throw MisuseError("dispatch: a client neither proceeded with " + op.schema().name() + " nor answered it");
  }

  template <Level level>
  static void require_fallback() {
    static std::atomic<bool> is_ours{false};
    if (is_ours.load(std::memory_order_acquire)) return;
    static std::mutex mutex;
    std::lock_guard lock(mutex);
    static std::optional<torch::Library> registration;
    if (registration) return;
    if (c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(key_of(level)))
      throw ConfigError(std::string("other code in this process handles LibTorch's dispatch key ") +
                        c10::toString(key_of(level)) +
                        " already (a second copy of this library, or one that works the same way), and only one can. "
                        "Load only one of them; without it, what watches operators is not available: measure_flops, "
                        "activation checkpointing, and strategies that shard parameters");
    registration.emplace(torch::Library::IMPL, "_", key_of(level), __FILE__, __LINE__);
    registration->fallback(torch::CppFunction::makeFromBoxedFunction<&Room::fallback<level>>());
    is_ours.store(true, std::memory_order_release);
  }

  static c10::DispatchKey own(Level level) {
    level == Level::above_autograd ? require_fallback<Level::above_autograd>()
                                   : require_fallback<Level::below_autograd>();
    return key_of(level);
  }
};

OperatorCall::OperatorCall(const c10::OperatorHandle& op, c10::DispatchKeySet keys, std::vector<c10::IValue>& stack,
                           c10::ArrayRef<std::shared_ptr<Client>> clients,
                           c10::ArrayRef<std::shared_ptr<Client>> standing, c10::DispatchKey other_level)
    : op_(op),
      keys_(keys),
      stack_(stack),
      clients_(clients),
      standing_(standing),
      remaining_(clients.size()),
      standing_remaining_(standing.size()),
      other_level_(other_level),
      other_level_hidden_(c10::impl::tls_is_dispatch_key_excluded(other_level)) {}

c10::ArrayRef<c10::IValue> OperatorCall::arguments() const {
  std::size_t count = op_.schema().arguments().size();
  return c10::ArrayRef<c10::IValue>(stack_.data() + stack_.size() - count, count);
}

void OperatorCall::set_argument(std::size_t index, c10::IValue value) {
  stack_.at(stack_.size() - op_.schema().arguments().size() + index) = std::move(value);
}

c10::ArrayRef<c10::IValue> OperatorCall::results() const {
  std::size_t count = done_ ? op_.schema().returns().size() : 0;
  return c10::ArrayRef<c10::IValue>(stack_.data() + stack_.size() - count, count);
}

void OperatorCall::proceed() {
  if (done_) throw MisuseError("dispatch: a client went on with " + op_.schema().name() + ", which was done");
  if (remaining_ == 0 && standing_remaining_ == 0) return run_kernel();
  Client& next = remaining_ > 0 ? *clients_[--remaining_] : *standing_[--standing_remaining_];
  Exclusion hidden(other_level_, true);
  next.operator_called(*this);
}

void OperatorCall::run_kernel() {
  Exclusion as_it_was(other_level_, other_level_hidden_);
  op_.redispatchBoxed(keys_, &stack_);
  done_ = true;
}

void OperatorCall::answer(std::vector<c10::IValue> results) {
  if (done_) throw MisuseError("dispatch: a client answered " + op_.schema().name() + ", which was done");
  if (results.size() != op_.schema().returns().size())
    throw MisuseError("dispatch: a client answered " + op_.schema().name() + " with " + std::to_string(results.size()) +
                      " results; it has " + std::to_string(op_.schema().returns().size()));
  stack_.resize(stack_.size() - op_.schema().arguments().size());
  for (auto& result : results) stack_.push_back(std::move(result));
  done_ = true;
}

Activation::Activation(Level level, std::shared_ptr<Client> client)
    : clients_(slot(), with(level, std::move(client))), key_(Room::own(level)) {}
Activation::~Activation() = default;

void add_standing_client(std::shared_ptr<Client> client) {
  if (!client) throw MisuseError("dispatch: a standing client that is empty");
  Room::own(Level::above_autograd);
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  auto* longer = new Clients(*standing_clients().load());
  longer->push_back(std::move(client));
  standing_clients().store(longer, std::memory_order_release);
}

namespace {

constexpr c10::DispatchKeySet kMark(c10::DispatchKey::DeferredInit);

// Shallow copies of a tensor take over its keys; a new one has those that it is told.
at::Tensor alias_with(const at::Tensor& tensor, c10::DispatchKeySet keys) {
  c10::InferenceMode outside(false);  // inside, the alias would lack the keys of autograd
  auto alias = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(tensor.storage()), keys, tensor.dtype());
  alias.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  return alias;
}

}  // namespace

at::Tensor marked(const at::Tensor& tensor) { return alias_with(tensor, tensor.key_set() | kMark); }
at::Tensor unmarked(const at::Tensor& tensor) { return alias_with(tensor, tensor.key_set() - kMark); }
bool is_marked(const at::Tensor& tensor) { return tensor.defined() && tensor.key_set().has_all(kMark); }

std::vector<std::shared_ptr<Client>> active_clients(Level level) {
  const auto* active = current();
  return active ? active->at(level) : std::vector<std::shared_ptr<Client>>{};
}

}  // namespace fabric::dispatch
