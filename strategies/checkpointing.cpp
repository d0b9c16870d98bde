// Saving and loading over several ranks. Whatever can fail on one rank alone runs inside run_together, so that a
// failure is everybody's and nobody waits for a rank that is gone.
#include <fabric/strategies/checkpointing.h>

#include <exception>
#include <utility>

#include <fabric/base/error.h>
#include <fabric/plugins/collectives/run_together.h>

#include "strategies/whole_state.h"

namespace fabric {
namespace {

using Path = std::filesystem::path;
using Job = std::shared_ptr<AsyncWriter::Job>;

void together(const CheckpointContext& context, const char* operation, const std::function<void()>& work) {
  run_together(context.group, operation, work, ErrorKind::checkpoint);
}

void call(const std::function<void()>& then) {
  if (then) then();
}

void remove_link(const Path& path, const SaveOptions& options) {
  std::error_code ignored;
  if (options.replaces_link && std::filesystem::is_symlink(path, ignored)) std::filesystem::remove(path, ignored);
}

/// Rank 0 writes the whole state.
class WholeSave : public SaveInProgress {
 public:
  WholeSave(const CheckpointContext& context, Path path, const SaveOptions& options)
      : context_(context), path_(std::move(path)), options_(options) {}
  ~WholeSave() override {
    if (job_) job_->settle();
  }
  void start(const WholeState& whole) {
    together(context_, "save", [&] {
      if (context_.group.rank() != 0) return;
      // The thread owns nothing: this object waits for it before it goes.
      auto write = [this](const Value& values) {
        remove_link(path_, options_);
        context_.io->save(values, path_);
        call(options_.then);
      };
      if (options_.async)
        job_ = context_.io->async().start(whole.values, write, whole.fresh);
      else
        write(whole.values);
    });
    done_ = !options_.async;
  }
  bool ended() const override { return !job_ || job_->ended(); }
  void wait() override {
    if (std::exchange(done_, true)) return;
    together(context_, "the end of a save", [&] {
      if (job_) job_->wait();
    });
  }

 private:
  CheckpointContext context_;
  Path path_;
  SaveOptions options_;
  Job job_;
  bool done_ = false;
};

/// Every rank writes its part; rank 0 commits when all parts are durable, which the ranks find out in `wait`.
class PartsSave : public SaveInProgress {
 public:
  PartsSave(const CheckpointContext& context, PartWriter& writer, Path path, const SaveOptions& options)
      : context_(context), writer_(writer), path_(std::move(path)), options_(options) {}
  ~PartsSave() override {
    if (job_) job_->settle();
    if (!done_) discard();
  }
  void start(const StatePart& part) {
    together(context_, "save", [&] {
      if (context_.group.rank() == 0) place_ = writer_.begin(path_);
    });
    place_ = context_.group.broadcast_value(Value(place_), 0).as_string();
    if (!options_.async) {
      write_and_agree([&] { written_ = write(part); });
      return commit();
    }
    write_and_agree([&] {
      auto work = [this, shards = part.shards, per_rank = part.per_rank](const Value& values) {
        written_ = write({values, shards, per_rank});
      };
      job_ = context_.io->async().start(part.values, std::move(work));
    });
  }
  bool ended() const override { return !job_ || job_->ended(); }
  void wait() override {
    if (done_) return;
    write_and_agree([&] {
      if (job_) job_->wait();
    });
    commit();
  }

 private:
  Value write(const StatePart& part) {
    return writer_.write(place_, part, context_.group.rank(), context_.group.size());
  }
  void write_and_agree(const std::function<void()>& work) {
    try {
      together(context_, "save", work);
    } catch (...) {
      done_ = true;
      // Not before the others have stopped writing there, which they had when they told how it went.
      discard();
      throw;
    }
  }
  void commit() {
    done_ = true;
    auto parts = context_.group.all_gather_value(written_);
    together(context_, "save", [&] {
      if (context_.group.rank() != 0) return;
      try {
        remove_link(path_, options_);
        writer_.commit(place_, path_, parts);
      } catch (...) {
        discard();
        throw;
      }
      call(options_.then);
    });
  }
  void discard() noexcept {
    if (context_.group.rank() == 0 && !place_.empty()) writer_.discard(place_);
  }

  CheckpointContext context_;
  PartWriter& writer_;
  Path path_;
  SaveOptions options_;
  std::string place_;
  Value written_;
  Job job_;
  bool done_ = false;
};

std::shared_ptr<SaveInProgress> save_alone(const CheckpointContext& context, const Path& path, const State& state,
                                           const SaveOptions& options) {
  CheckpointContext alone{ProcessGroup::single(), context.io, context.access};
  StatePart part = collect_state(state, alone.access, options.filter);
  if (!part.shards.empty())
    throw MisuseError("'" + part.shards.begin()->first +
                      "' is spread over ranks, so that one rank alone cannot save it; let all ranks save together");
  auto save = std::make_shared<WholeSave>(alone, path, options);
  save->start({std::move(part.values), {}});
  return save;
}

}  // namespace

std::shared_ptr<SaveInProgress> save_state(const CheckpointContext& context, const Path& path, const State& state,
                                           const SaveOptions& options) {
  if (options.alone) return save_alone(context, path, state, options);
  StatePart part;
  together(context, "save", [&] {
    part = collect_state(state, context.access, options.filter);
    require_sound(part);
  });
  if (auto* writer = context.io->part_writer()) {
    auto save = std::make_shared<PartsSave>(context, *writer, path, options);
    save->start(part);
    return save;
  }
  auto save = std::make_shared<WholeSave>(context, path, options);
  save->start(gather_whole_state(std::move(part), context.group));
  return save;
}

Value load_state(const CheckpointContext& context, const Path& path, State* state, bool strict) {
  const bool whole = !state || state->empty();
  Value checkpoint;
  together(context, "load", [&] {
    checkpoint = context.io->open(path);
    if (whole) checkpoint = in_memory(std::move(checkpoint));
  });
  if (whole) return checkpoint;
  return restore_state(*state, std::move(checkpoint), context.access, strict,
                       [&](const std::function<void()>& step) { together(context, "load", step); });
}

Value open_state(const CheckpointContext& context, const Path& path) {
  Value checkpoint;
  together(context, "load", [&] { checkpoint = context.io->open(path); });
  return checkpoint;
}

void load_raw_state(const CheckpointContext& context, const Path& path, const StateEntry& object, bool strict) {
  auto* module = object.module();
  auto* optimizer = object.optimizer();
  const auto& access = context.access;
  Value state;
  together(context, "load_raw", [&] {
    if (!module && !optimizer) throw MisuseError("load_raw restores a module or an optimizer");
    state = context.io->open(path);
    if (module && strict && access.check_module) access.check_module(*module, state);
    if (optimizer && access.check_optimizer) access.check_optimizer(*optimizer, state);
  });
  together(context, "load_raw", [&] {
    if (module)
      access.set_module(*module, state, strict);
    else
      access.set_optimizer(*optimizer, state);
  });
}

}  // namespace fabric
