#include <fabric/helpers/checkpointing/checkpoint_target_internal.h>

#include <string>
#include <utility>

#include <fabric/base/error.h>
#include <fabric/fabric.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

namespace fabric {
namespace {

/// The caller's function in the place of a format.
class FunctionIO : public CheckpointIO {
 public:
  explicit FunctionIO(WriteFunction write) : write_(std::move(write)) {}
  std::string name() const override { return "function"; }
  void save(const Value& checkpoint, const std::filesystem::path& path) override { write_(path, checkpoint); }
  Value load(const std::filesystem::path& path) override { return make_checkpoint_io()->load(path); }

 private:
  WriteFunction write_;
};

}  // namespace

Value on_rank_zero(const Peers& peers, const std::string& operation, const std::function<Value()>& work) {
  Value outcome;
  peers.run_together(
      operation,
      [&] {
        if (peers.rank() == 0) outcome = work();
      },
      ErrorKind::checkpoint);
  return peers.broadcast(outcome);
}

CheckpointTarget target_through(const Fabric& fabric) {
  return [&fabric](const std::filesystem::path& path, const State& state, const SaveOptions& options) {
    return fabric.save(path, state, options);
  };
}

CheckpointTarget target_without_fabric(WriteFunction write, const Peers& peers) {
  CheckpointContext context{peers.group(),
                            write ? std::make_shared<FunctionIO>(std::move(write)) : make_checkpoint_io(),
                            StateAccess::plain()};
  context.access.rank = peers.rank();
  return [context](const std::filesystem::path& path, const State& state, const SaveOptions& options) {
    return save_state(context, path, state, options);
  };
}

}  // namespace fabric
