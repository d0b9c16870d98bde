#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/variable.h>

#include <fabric/plugins/collectives/process_group.h>
#include <fabric/state/sharding.h>

#include "strategies/sharded/buffer_pool.h"
#include "strategies/sharded/cut.h"
#include "strategies/sharded/home.h"
#include "strategies/sharded/unit_plan.h"

namespace fabric::sharded {

class Engine;

using AccumulatorPtr = decltype(torch::autograd::impl::grad_accumulator(std::declval<const at::Tensor&>()));

/// Who holds what, and in which types it travels.
struct Settings {
  ProcessGroup all;                     // every rank that trains the model
  ProcessGroup shards;                  // those that hold one copy of it together
  ProcessGroup replicas;                // those that hold the same pieces; a group of one where there is one copy
  c10::Device device = c10::kCPU;       // where it is computed
  c10::Device home_device = c10::kCPU;  // where the pieces, their gradients and the optimizer are
  std::optional<at::ScalarType> param_type = {};   // of gathered parameters; empty: as they are
  std::optional<at::ScalarType> reduce_type = {};  // in which gradients travel; empty: as they are
  /// Units are let go of in the forward pass and gathered again in the backward pass.
  bool reshard_after_forward = true;
  /// Units that the last pass of the kind touched next are gathered ahead: in the forward pass; in the backward pass,
  /// before a unit's gradients are computed or after they are reduced.
  bool forward_prefetch = false;
  enum class Backward { no_prefetch, prefetch_before, prefetch_after } backward = Backward::no_prefetch;
  std::size_t ahead = 1;  // so many of them
  std::int64_t contributions() const { return std::int64_t{shards.size()} * replicas.size(); }
};

/// One of the user's parameters. The tensor stays; what it holds is either this rank's piece or the whole.
struct Parameter {
  std::string name;
  at::Tensor tensor;
  Cut cut;
  at::ScalarType type, compute_type;
  std::int64_t offset = 0, whole_offset = 0;    // in the storages of its bundle
  at::Tensor shard = {}, whole = {};            // the two contents
  at::Tensor flat_shard = {}, flat_whole = {};  // the same memory, padding included, for our own use
  AccumulatorPtr accumulator = {};
  bool is_trained = false;
  bool is_used = false;                        // in the last forward passes
  at::Tensor arrived = {};                     // whole gradient of this backward pass
  at::Tensor staged = {};                      // memory of the pool's that it was moved to
  at::Tensor kept = {};                        // of earlier ones that were not synchronised
  at::Tensor grad_memory = {}, own_grad = {};  // what `.grad` shows of it

  std::int64_t itemsize() const { return static_cast<std::int64_t>(c10::elementSize(type)); }
  /// The box that this rank holds; nothing where it holds all.
  std::optional<Shard> box() const;
};

/// The parameters of a unit that are of one type.
struct Bundle {
  at::ScalarType type, compute_type;
  // Large ones travel alone and arrive where they are used; small ones together. Uncut ones do not travel.
  std::vector<Parameter*> small = {}, large = {}, uncut = {};
  Home shards = {}, gathered = {};
  at::Tensor grads = {};  // on the CPU, memory of all pieces' gradients, laid out as the shards
  std::int64_t small_piece = 0, gathered_elements = 0;
  bool is_resident = false;  // whole and in its final type at all times
};

/// Parameters that are gathered together and let go of together.
class Unit {
 public:
  /// Takes the parameters' contents; `settings` and `pool` outlive it.
  Unit(Engine& engine, const UnitPlan& plan, const Settings& settings, BufferPool& pool);
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;
  ~Unit();

  Engine& engine() const { return engine_; }
  const std::string& name() const { return name_; }
  const std::vector<std::unique_ptr<Parameter>>& parameters() const { return parameters_; }
  /// Its parameters are whole at all times.
  bool is_resident() const;

  /// The parameters' shapes and types are the whole ones, whether their content is there or not: what a model asks of
  /// them before an operator touches them is then right.
  void show_whole();
  /// They are this rank's pieces; nothing is gathered.
  void show_pieces();
  bool is_gathered() const { return is_gathered_; }
  void gather();
  /// Starts to gather; `gather` then waits for it. Every rank starts the same.
  void begin_gather();
  void let_go();
  /// Whether a tensor of this unit's is, or is a view of, a gathered content.
  bool holds_gathered(const at::Tensor& tensor) const;
  /// A tensor with a content of this unit's was given to an operator in a forward pass that computes gradients.
  void note_use(const at::Tensor& tensor);

  /// Takes the list of those that are trained anew; `hook` gets each that has none yet.
  template <class Hook>
  void follow_requires_grad(Hook&& hook);
  /// A trained parameter that nobody told us of, or null.
  const Parameter* untold() const;

  /// The gradient of this backward pass, or what is to be added to it. `at_once`: it will be reduced in this pass.
  void take_gradient(Parameter& parameter, at::Tensor gradient, bool at_once);
  /// All gradients that the last forward passes can give have arrived.
  bool is_complete() const;
  bool has_gradients() const;
  /// What has arrived is kept for a later pass that is synchronised.
  void keep_gradients();
  void forget_arrived();
  void forget_kept();
  void forget_use();
  /// Averages what has arrived, or was kept, over the ranks, and adds this rank's part to `.grad`. A parameter that no
  /// rank has a gradient for is left alone.
  void reduce();

  /// The whole parameter in its own type; every rank calls it.
  at::Tensor whole_of(const Parameter& parameter) const;
  at::Tensor whole_grad_of(const Parameter& parameter) const;

 private:
  template <class Visit>
  void for_each_cut(Visit&& visit);
  void lay_out(const UnitPlan& plan);
  void move_in(Bundle& bundle);
  void make_accumulator(Parameter& parameter);
  struct Gathering;
  void start_gather(Bundle& bundle, Gathering& gathering);
  void finish_gather(Bundle& bundle, Gathering& gathering);
  void finish_gathers();
  void lose_gathers();
  void give_up_gathers() noexcept;
  at::ScalarType reduced_type(const Parameter& parameter) const;
  bool is_reduced_alone(const Parameter& parameter) const;
  void unstage(Parameter& parameter);
  void give_grad_memory(const Bundle& bundle, Parameter& parameter) const;
  struct Reduction;
  void start_reduction(Bundle& bundle, Reduction& reduction);
  void finish_reduction(const Bundle& bundle, Reduction& reduction);
  at::Tensor whole_of(const Parameter& parameter, const at::Tensor& piece) const;

  Engine& engine_;
  std::string name_;
  const Settings& settings_;
  BufferPool& pool_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::vector<std::unique_ptr<Bundle>> bundles_;
  bool shows_whole_ = false;
  bool is_gathered_ = false, is_arriving_ = false;
  std::vector<std::shared_ptr<Gathering>> gatherings_;  // by bundle
};

/// Gives a tensor another content; members, dictionaries and optimizers keep the tensor, and graphs their version of
/// it.
void swap_content(const at::Tensor& tensor, const at::Tensor& content);

template <class Hook>
void Unit::follow_requires_grad(Hook&& hook) {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& parameter = *parameters_[i];
    parameter.is_trained = parameter.tensor.requires_grad();
    if (!parameter.is_trained || parameter.accumulator) continue;
    make_accumulator(parameter);
    hook(*this, parameter);
  }
}

}  // namespace fabric::sharded
