#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <fabric/export.h>

/// What a model calls, seen operator by operator, its class untouched. C++ modules have no hooks; LibTorch's dispatcher
/// has two keys that nothing in it uses, and this room owns both. A client stands on one of them for as long as its
/// Activation lives; where none does, operators cost what they cost without this library.
namespace fabric::dispatch {

/// Where in the dispatcher a client stands.
enum class Level {
  /// Before autograd and autocast: operators as the model writes them (linear, layer_norm), with its own parameters
  /// among the arguments, and results that have their grad_fn. What an operator calls inside is not seen.
  above_autograd,
  /// Behind autograd, just before the kernels: operators as they are executed (mm, addmm), in the backward pass, too.
  below_autograd,
};

class Client;

/// One call of an operator on its way to its kernel. Lives on the caller's stack.
class FABRIC_API OperatorCall {
 public:
  OperatorCall(const OperatorCall&) = delete;
  OperatorCall& operator=(const OperatorCall&) = delete;

  const c10::OperatorHandle& op() const { return op_; }
  /// Valid until the call is done.
  c10::ArrayRef<c10::IValue> arguments() const;
  /// Replaces an argument for everything that comes after.
  void set_argument(std::size_t index, c10::IValue value);
  /// Goes on to the next client and at last to the kernel.
  void proceed();
  /// Answers with these results instead; kernel and outer clients never hear of the call.
  void answer(std::vector<c10::IValue> results);
  /// Once the call is done.
  c10::ArrayRef<c10::IValue> results() const;

 private:
  friend class Room;
  OperatorCall(const c10::OperatorHandle& op, c10::DispatchKeySet keys, std::vector<c10::IValue>& stack,
               c10::ArrayRef<std::shared_ptr<Client>> clients, c10::ArrayRef<std::shared_ptr<Client>> standing,
               c10::DispatchKey other_level);
  void run_kernel();

  const c10::OperatorHandle& op_;
  c10::DispatchKeySet keys_;  // those that are left
  std::vector<c10::IValue>& stack_;
  c10::ArrayRef<std::shared_ptr<Client>> clients_, standing_;
  std::size_t remaining_, standing_remaining_;
  c10::DispatchKey other_level_;
  bool other_level_hidden_;  // when the operator was called
  bool done_ = false;
};

/// Who looks at operators. One object may be active on several threads at once.
class FABRIC_API Client {
 public:
  virtual ~Client() = default;
  /// Called for each operator; calls `proceed` or `answer` once. Operators that it calls itself, here, are seen by no
  /// client of either level. What it throws goes to the operator's caller.
  virtual void operator_called(OperatorCall& call) = 0;
  /// Of the active clients with the same kind, other than null, only the one activated last is called.
  virtual const void* kind() const { return nullptr; }
};

/// Makes a client active on this thread and on those that take over its at::ThreadLocalState, as autograd's threads do.
/// The client activated last sees a call first; one that is active already stays where it is. Activations end in
/// reverse order, on the thread where they began. Throws ConfigError when the level's key belongs to other code.
class [[nodiscard]] Activation {
 public:
  FABRIC_API Activation(Level level, std::shared_ptr<Client> client);
  FABRIC_API ~Activation();
  Activation(const Activation&) = delete;
  Activation& operator=(const Activation&) = delete;

 private:
  c10::DebugInfoGuard clients_;
  c10::impl::IncludeDispatchKeyGuard key_;
};

/// Adds a client above autograd that sees every operator of which an argument is a marked tensor, on any thread and
/// outside of activations, after the active clients. It stays until the process ends. Throws ConfigError when the
/// level's key belongs to other code.
FABRIC_API void add_standing_client(std::shared_ptr<Client> client);
/// The same memory, marked: operators that are given it, a view of it or what autograd saved of it come to the standing
/// clients. Other operators cost what they did. No gradient leads to it; it is a content for a parameter.
FABRIC_API at::Tensor marked(const at::Tensor& tensor);
/// The same memory without a mark.
FABRIC_API at::Tensor unmarked(const at::Tensor& tensor);
FABRIC_API bool is_marked(const at::Tensor& tensor);

/// The clients that are active here, in the order of their activation.
FABRIC_API std::vector<std::shared_ptr<Client>> active_clients(Level level);

}  // namespace fabric::dispatch
