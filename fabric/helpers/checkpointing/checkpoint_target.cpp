#include <fabric/helpers/checkpointing/checkpoint_target_internal.h>

#include <exception>
#include <string>

#include <fabric/base/error.h>
#include <fabric/fabric.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

namespace fabric {

Value on_rank_zero(const Peers& peers, const std::function<Value()>& work) {
  Value outcome = Value::List{"", Value()};
  if (peers.rank() == 0) {
    try {
      outcome.as_list()[1] = work();
    } catch (const std::exception& error) {
      std::string text = error.what();
      outcome.as_list()[0] = text.empty() ? "unknown error" : text;
    }
  }
  outcome = peers.broadcast(outcome);
  if (const auto& failure = outcome.as_list()[0].as_string(); !failure.empty()) throw CheckpointError(failure);
  return outcome.as_list()[1];
}

CheckpointTarget CheckpointTarget::through(const Fabric& fabric) {
  CheckpointTarget target;
  target.save = [&fabric](const std::filesystem::path& path, State& state) { fabric.save(path, state); };
  target.collect = [&fabric](const State& state) {
    Strategy& strategy = *fabric.strategy();
    StateAccess access = StateAccess::plain();
    access.get_module = [&](torch::nn::Module& module) { return strategy.get_module_state_dict(module); };
    access.get_optimizer = [&](torch::optim::Optimizer& optimizer) { return strategy.get_optimizer_state(optimizer); };
    return collect_state(state, access);
  };
  target.write = [&fabric](const std::filesystem::path& path, const Value& checkpoint) {
    fabric.strategy()->checkpoint_io()->save(checkpoint, path);
  };
  return target;
}

CheckpointTarget CheckpointTarget::of(std::function<void(const std::filesystem::path&, const Value&)> write,
                                      const Peers& peers) {
  CheckpointTarget target;
  target.write = std::move(write);
  if (!target.write)
    target.write = [io = make_checkpoint_io()](const std::filesystem::path& path, const Value& checkpoint) {
      io->save(checkpoint, path);
    };
  target.collect = [](const State& state) { return collect_state(state, StateAccess::plain()); };
  target.save = [write = target.write, peers](const std::filesystem::path& path, State& state) {
    Value checkpoint = collect_state(state, StateAccess::plain());
    on_rank_zero(peers, [&] { return write(path, checkpoint), Value(); });
  };
  return target;
}

}  // namespace fabric
