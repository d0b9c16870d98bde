#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/scope.h>
#include <fabric/state/sharding.h>
#include <fabric/strategies/summon.h>

#include "strategies/sharded/buffer_pool.h"
#include "strategies/sharded/unit.h"
#include "strategies/sharded/unit_plan.h"

namespace fabric::sharded {

/// One model's parameters over the ranks: who is whole when, and where gradients go. Knows nothing of strategies.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  static std::shared_ptr<Engine> make(Settings settings);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Takes the parameters' contents; they are whole, on the device, and equal on all ranks. Every rank adds the same.
  void add_unit(const UnitPlan& plan);
  const Settings& settings() const { return settings_; }
  /// One rank that keeps all as it is: nothing is ever done.
  bool is_idle() const;
  const std::vector<std::unique_ptr<Unit>>& units() const { return units_; }
  /// Null for a tensor that is no parameter of the model.
  const Parameter* find(const at::Tensor& tensor) const;

  // --- passes
  /// Around each call of the model; the scope's end is a failed call unless `forward_ended` came before.
  Scope begin_forward();
  void forward_ended() { forward_failed_ = false; }
  /// Outside of passes: all parameters are pieces. Throws MisuseError while whole ones are lent out.
  void release();
  /// A pass threw on its way: what it left is thrown away.
  void abandon();
  Scope no_sync();
  /// `requires_grad` of parameters was changed. Every rank calls it.
  void follow_requires_grad();
  void forget_kept_gradients(const at::Tensor& parameter);
  Scope summon(const SummonOptions& options);
  bool is_summoned() const { return summoned_; }
  bool is_in_pass() const { return forward_depth_ > 0 || in_backward(); }

  // --- called by operators and by autograd
  /// Operators of a pass need these units of this engine's at once.
  void touch(c10::ArrayRef<Unit*> units);
  void gradient_arrived(Unit& unit, Parameter& parameter, at::Tensor gradient);

  std::int64_t pool_bytes() const { return pool_.bytes(); }

 private:
  // In which order units were gathered: by the last pass of a kind, and by this one.
  struct Order {
    std::vector<Unit*> before = {}, now = {};
    std::size_t place = 0;  // in `before`, behind the unit that came last
    void begin();
    void note(Unit& unit);
  };
  struct Link;
  struct Capture;
  explicit Engine(Settings settings);
  bool in_backward() const;
  void expect_end_of_backward();
  void backward_ended();
  void finish_unit(Unit& unit);
  void let_go_of_others(c10::ArrayRef<Unit*> needed);
  void let_all_go();
  void gather_ahead();
  void drop_what_is_ahead();

  Settings settings_;
  BufferPool pool_;
  std::vector<std::unique_ptr<Unit>> units_;
  std::unordered_map<const void*, const Parameter*> by_tensor_;
  std::shared_ptr<Link> link_;  // what hooks hold: they may outlive the engine
  std::vector<Unit*> present_;  // touched last, and gathered
  std::vector<Unit*> ahead_;    // on their way, for nobody has touched them yet
  Order forward_order_, backward_order_;
  int forward_depth_ = 0;
  bool forward_failed_ = false;
  int local_depth_ = 0;
  int backward_ = -1;          // the pass whose end is waited for
  bool uses_are_old_ = false;  // a backward pass came since they were noted
  bool summoned_ = false;
};

/// While it lives, operators of this thread outside of passes get the pieces as they are: for optimizers and
/// checkpoints.
class [[nodiscard]] PieceAccess {
 public:
  PieceAccess();
  ~PieceAccess();
  PieceAccess(const PieceAccess&) = delete;
  PieceAccess& operator=(const PieceAccess&) = delete;
  static bool is_open();
};

}  // namespace fabric::sharded
