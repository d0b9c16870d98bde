#include "strategies/sharded/touch.h"

#include <mutex>

#include <ATen/core/grad_mode.h>
#include <c10/util/SmallVector.h>

#include <fabric/base/error.h>
#include <fabric/dispatch/operator_hooks.h>

#include "strategies/sharded/engine.h"

namespace fabric::sharded {
namespace {

thread_local int piece_access = 0;

template <class Visit>
void for_each_marked(c10::ArrayRef<c10::IValue> arguments, Visit&& visit) {
  auto look = [&](const c10::IValue& value) {
    if (!value.isTensor()) return;
    const at::Tensor& tensor = value.toTensor();
    if (dispatch::is_marked(tensor)) visit(tensor);
  };
  for (const auto& argument : arguments) {
    look(argument);
    if (argument.isTensorList() || argument.isList())
      for (const c10::IValue& item : argument.toListRef()) look(item);
  }
}

using TouchedUnits = c10::SmallVector<Unit*, 4>;

void add_once(TouchedUnits& units, Unit* unit) {
  for (Unit* known : units)
    if (known == unit) return;
  units.push_back(unit);
}

class TouchClient : public dispatch::Client {
 public:
  void operator_called(dispatch::OperatorCall& call) override {
    TouchedUnits units;
    for_each_marked(call.arguments(), [&](const at::Tensor& tensor) {
      Residence residence = residence_of(tensor);
      if (!residence.is_home) return;
      if (!residence.unit)
        throw MisuseError(
            "this parameter is one rank's part of a sharded model that is gone: keep the model that setup returned as "
            "long as its module is used");
      add_once(units, residence.unit);
    });
    if (!units.empty()) touch(call, units);
    call.proceed();
  }

 private:
  static void touch(dispatch::OperatorCall& call, const TouchedUnits& units) {
    TouchedUnits of_one;
    bool in_pass = false;
    for (std::size_t i = 0; i < units.size(); ++i) {
      Engine& engine = units[i]->engine();
      if (PieceAccess::is_open() && !engine.is_in_pass()) continue;
      in_pass = true;
      of_one.clear();
      bool is_first = true;
      for (std::size_t j = 0; j < units.size(); ++j) {
        if (&units[j]->engine() != &engine) continue;
        is_first &= j >= i;
        of_one.push_back(units[j]);
      }
      if (is_first) engine.touch(of_one);
    }
    if (!in_pass) return;
    const bool trains = at::GradMode::is_enabled();
    for_each_marked(call.arguments(), [&](const at::Tensor& tensor) {
      Unit* unit = residence_of(tensor).unit;
      if (unit && unit->is_gathered() && !unit->holds_gathered(tensor))
        throw MisuseError("an operator in a pass was given an alias of this rank's part of a parameter of unit " +
                          unit->name() + ", made outside of the pass; use the module's own parameter");
      if (unit && trains) unit->note_use(tensor);
    });
  }
};

}  // namespace

void watch_touches() {
  static std::once_flag once;
  std::call_once(once, [] { dispatch::add_standing_client(std::make_shared<TouchClient>()); });
}

void refuse_touch(const Unit& unit) {
  throw MisuseError(
      "a parameter of unit '" + unit.name() +
      "' was read outside of a forward or backward pass, where this rank holds a part of it only. Call the "
      "wrapped model (model(x), or model.call(…) for other code over its parameters), or open a scope "
      "with `auto whole = fabric::summon(model)` on every rank");
}

PieceAccess::PieceAccess() { ++piece_access; }
PieceAccess::~PieceAccess() { --piece_access; }
bool PieceAccess::is_open() { return piece_access > 0; }

}  // namespace fabric::sharded
