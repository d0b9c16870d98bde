// Saving and loading over several ranks. Whatever can fail on one rank alone runs inside run_together, so that a
// failure is everybody's and nobody waits for a rank that is gone.
#include <fabric/strategies/checkpointing.h>

#include <fcntl.h>
#include <stdio.h>

#include <exception>
#include <unordered_set>
#include <utility>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/plugins/collectives/run_together.h>

#include "strategies/load_names.h"
#include "strategies/whole_state.h"

namespace fabric {
namespace {

using Path = std::filesystem::path;
using Job = std::shared_ptr<AsyncWriter::Job>;

void together(const CheckpointContext& context, const char* operation, const std::function<void()>& work) {
  run_together(context.group, operation, work, ErrorKind::checkpoint);
}

using Unchanging = std::unordered_set<const void*>;

void add_storage(Unchanging& storages, const at::Tensor& tensor) {
  if (tensor.defined() && tensor.has_storage()) storages.insert(tensor.storage().unsafeGetStorageImpl());
}

/// What only an optimizer's step changes: parameters, and the tensors in optimizer states. Not buffers, which a forward
/// pass changes.
Unchanging unchanging_in(const State& state, const SaveOptions& options) {
  Unchanging storages;
  if (!options.async || !options.copy_beside) return storages;
  for (const auto& [key, entry] : state) {
    if (auto* module = entry.module())
      module->apply([&](torch::nn::Module& part) {
        for (const auto& item : part.named_parameters(/*recurse=*/false)) add_storage(storages, item.value());
      });
    if (auto* optimizer = entry.optimizer()) {
      Value values = optimizer_state_dict(*optimizer);
      for_each_leaf_tensor(values, [&](at::Tensor& tensor, const std::string&) { add_storage(storages, tensor); });
    }
  }
  return storages;
}

void call(const std::function<void()>& then) {
  if (then) then();
}

/// Where a save writes. A link that is to be replaced leads to the old checkpoint until the new one is whole: that is
/// written beside it, and takes its name in one step.
class Destination {
 public:
  Destination() = default;
  Destination(Path path, bool replaces_link) : path_(std::move(path)) {
    std::error_code ignored;
    if (replaces_link && std::filesystem::is_symlink(path_, ignored))
      beside_ = folder_of(path_) / ("." + path_.filename().string() + ".partial-new");
  }
  const Path& writes_to() const { return beside_.empty() ? path_ : beside_; }
  void take_name() const {
    if (beside_.empty()) return;
    std::error_code error, ignored;
    // A folder cannot be renamed over a link.
    const bool exchanged = std::filesystem::is_directory(beside_, ignored) &&
                           renameat2(AT_FDCWD, beside_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0;
    if (!exchanged && std::filesystem::is_directory(beside_, ignored)) std::filesystem::remove(path_, ignored);
    if (!exchanged) std::filesystem::rename(beside_, path_, error);
    if (exchanged) std::filesystem::remove(beside_, ignored);  // the link
    if (!error) error = sync_path(folder_of(path_));
    if (error) throw CheckpointError("cannot move a new checkpoint to '" + path_.string() + "': " + error.message());
  }

 private:
  Path path_, beside_;
};

/// Tells once what went wrong.
class Save : public SaveInProgress {
 public:
  ~Save() override {
    if (!failure_) return;
    try {
      std::rethrow_exception(failure_);
    } catch (const std::exception& error) {
      log::error(std::string("a checkpoint that was being written is lost: ") + error.what());
    } catch (...) {
      log::error("a checkpoint that was being written is lost");
    }
  }
  void wait() override {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    finish();
  }
  void settle() noexcept override {
    try {
      finish();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

 protected:
  /// Does nothing the second time.
  virtual void finish() = 0;

 private:
  std::exception_ptr failure_;
};

/// Rank 0 writes the whole state.
class WholeSave : public Save {
 public:
  WholeSave(const CheckpointContext& context, Path path, const SaveOptions& options)
      : context_(context), path_(std::move(path)), options_(options) {}
  ~WholeSave() override {
    if (job_) job_->settle();
  }
  void start(const WholeState& whole, Unchanging unchanging) {
    together(context_, "save", [&] {
      if (context_.group.rank() != 0) return;
      // The thread owns nothing: this object waits for it before it goes.
      auto write = [this](const Value& values) {
        const Destination to(path_, options_.replaces_link);
        context_.io->save(values, to.writes_to());
        to.take_name();
        call(options_.then);
      };
      if (options_.async)
        job_ = context_.io->async().start(whole.values, write, {whole.fresh, std::move(unchanging)});
      else
        write(whole.values);
    });
    done_ = !options_.async;
  }
  bool ended() const override { return !job_ || job_->ended(); }

 protected:
  void finish() override {
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
class PartsSave : public Save {
 public:
  PartsSave(const CheckpointContext& context, PartWriter& writer, Path path, const SaveOptions& options)
      : context_(context), writer_(writer), path_(std::move(path)), options_(options) {}
  ~PartsSave() override {
    if (job_) job_->settle();
    if (done_) return;
    if (job_ && context_.group.rank() == 0)
      log::error("the checkpoint '" + path_.string() +
                 "' is given up: its parts were written, but the ranks never finished it together. Keep what save "
                 "returns and call its wait() on every rank");
    discard();
  }
  void start(const StatePart& part, Unchanging unchanging) {
    together(context_, "save", [&] {
      if (context_.group.rank() != 0) return;
      to_ = Destination(path_, options_.replaces_link);
      place_ = writer_.begin(to_.writes_to());
    });
    place_ = context_.group.broadcast_value(Value(place_), 0).as_string();
    if (!options_.async) {
      write_and_agree("save", [&] { written_ = write(part); });
      return commit();
    }
    write_and_agree("save", [&] {
      auto work = [this, shards = part.shards, per_rank = part.per_rank](const Value& values) {
        written_ = write({values, shards, per_rank});
      };
      job_ = context_.io->async().start(part.values, std::move(work), {{}, std::move(unchanging)});
    });
  }
  bool ended() const override { return !job_ || job_->ended(); }

 protected:
  void finish() override {
    if (done_) return;
    write_and_agree("the end of a save", [&] {
      if (job_) job_->wait();
    });
    commit();
  }

 private:
  Value write(const StatePart& part) {
    return writer_.write(place_, part, context_.group.rank(), context_.group.size());
  }
  void write_and_agree(const char* operation, const std::function<void()>& work) {
    try {
      together(context_, operation, work);
    } catch (...) {
      done_ = true;
      // Not before the others have stopped writing there, which they had when they told how it went.
      discard();
      throw;
    }
  }
  void commit() {
    done_ = true;
    std::vector<Value> parts;
    try {
      parts = context_.group.all_gather_value(written_);
    } catch (...) {
      discard();  // the lock in the place would keep every later save of this process from it
      throw;
    }
    together(context_, "save", [&] {
      if (context_.group.rank() != 0) return;
      try {
        writer_.commit(place_, to_.writes_to(), parts);
        to_.take_name();
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
  Destination to_;  // on rank 0
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
  save->start({std::move(part.values), {}}, unchanging_in(state, options));
  return save;
}

}  // namespace

std::shared_ptr<SaveInProgress> save_state(const CheckpointContext& context, const Path& path, const State& state,
                                           const SaveOptions& options) {
  // One at a time: this save must not overtake one that is still written, nor call the format beside that one's thread.
  context.io->async().finish();
  if (options.alone) return save_alone(context, path, state, options);
  StatePart part;
  together(context, "save", [&] {
    part = collect_state(state, context.access, options.filter);
    require_sound(part);
  });
  if (auto* writer = context.io->part_writer()) {
    auto save = std::make_shared<PartsSave>(context, *writer, path, options);
    save->start(part, unchanging_in(state, options));
    return save;
  }
  auto save = std::make_shared<WholeSave>(context, path, options);
  save->start(gather_whole_state(std::move(part), context.group), unchanging_in(state, options));
  return save;
}

Value load_state(const CheckpointContext& context, const Path& path, State* state, const LoadOptions& options) {
  const bool whole = !state || state->empty();
  NamedLoad names(options);
  Value checkpoint;
  together(context, "load", [&] {
    checkpoint = names.rename(whole ? in_memory(context.io->load(path)) : context.io->open(path), path);
  });
  if (whole) return checkpoint;
  return restore_state(*state, std::move(checkpoint), names.access(context.access, state), options.strict,
                       [&](const std::function<void()>& step) { together(context, "load", step); });
}

Value open_state(const CheckpointContext& context, const Path& path) {
  Value checkpoint;
  together(context, "load", [&] { checkpoint = context.io->open(path); });
  return checkpoint;
}

void load_raw_state(const CheckpointContext& context, const Path& path, const StateEntry& object,
                    const LoadOptions& options) {
  auto* module = object.module();
  auto* optimizer = object.optimizer();
  NamedLoad names(options);
  StateAccess access;
  Value state;
  together(context, "load_raw", [&] {
    if (!module && !optimizer) throw MisuseError("load_raw restores a module or an optimizer");
    state = names.rename(context.io->open(path), path);
    access = names.access(context.access, nullptr);
    if (module && options.strict && access.check_module) access.check_module(*module, state);
    if (optimizer && access.check_optimizer) access.check_optimizer(*optimizer, state);
  });
  together(context, "load_raw", [&] {
    if (module)
      access.set_module(*module, state, options.strict);
    else
      access.set_optimizer(*optimizer, state);
  });
}

}  // namespace fabric
