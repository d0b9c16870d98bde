// Which samples come when, and how far an iteration got: the part of a loader that knows no batch's type.
//
// A sampler gives indices, a batch sampler or this file groups them, workers read them in any order. The place in an
// epoch is the pair (batches consumed without a gap, batches consumed beyond the first gap), so that it is exact with
// workers that overtake each other.
//
// Invariants:
// - A sample is given out once an epoch, also over a save and a load in the middle of it and with another number of
// ranks.
// - To resume, the sampler is brought back to the epoch's beginning and drawn again up to the place; where its order
// cannot
//   be known to be the same, a hash of what was used is compared and a difference is an error.
// - One iteration at a time: the number that begin() returns tells an older one that it has ended.
#include <fabric/data/loader_core.h>

#include <algorithm>
#include <limits>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <c10/core/DefaultDtype.h>
#include <c10/util/Exception.h>
#include <c10/util/Type.h>

#include <fabric/base/log.h>
#include <fabric/data/seed.h>
#include <fabric/data/worker_pool.h>

namespace fabric {
namespace {

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw ConfigError(otherwise);
}

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::Error& failure) {
    return failure.what_without_backtrace();
  } catch (const std::exception& failure) {
    return failure.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

}  // namespace

void DataLoaderOptions::validate() const {
  require(batch_size > 0, "batch_size is 0: write the number of samples per batch, at least 1");
  require(workers >= 0,
          "workers is " + std::to_string(workers) + ": write 0 for none, or how many threads read samples");
  require(prefetch >= 1, "prefetch is " + std::to_string(prefetch) + ": each worker makes at least 1 batch ahead");
  require(timeout >= 0, "timeout is negative: write seconds, or 0 for no limit");
  require(!(shuffle && sampler.given()), "shuffle and sampler exclude each other: the sampler chooses the order");
  require(!(batch_sampler.sampler() && sampler.given()),
          "batch_sampler and sampler exclude each other: the batch sampler chooses the samples");
  require(!(batch_sampler.sampler() && (batch_size != 1 || shuffle || drop_last)),
          "a ready-made batch_sampler excludes batch_size, shuffle and drop_last: it chooses whole batches. Set them "
          "there, or pass a function (sampler, batch_size, drop_last) that makes one");
}

namespace detail {

LoaderCore::LoaderCore(DataLoaderOptions options, bool is_stream, std::optional<std::size_t> dataset_size)
    : options_(std::move(options)), is_stream_(is_stream), dataset_size_(dataset_size) {
  options_.validate();
  if (is_stream_)
    require(!options_.shuffle && !options_.sampler.given() && !options_.batch_sampler.given(),
            "this dataset is a stream, whose order is its own: shuffle, sampler and batch_sampler cannot change it");
  choose_samplers();
}

std::shared_ptr<IndexSampler> LoaderCore::shard_sampler(const std::shared_ptr<IndexSampler>& given) {
  if (given) {
    if (!is_sharded() || given->is_sharded()) return given;
    wrapper_ = std::make_shared<DistributedSamplerWrapper>(given, *context_->shard);
    return wrapper_;
  }
  if (!dataset_size_)
    throw MisuseError("the dataset has no size, so its samples have no order: give it a size(), or pass a sampler");
  SamplerShard shard = is_sharded() ? *context_->shard : SamplerShard{};
  own_sampler_ = std::make_shared<DistributedSampler>(
      *dataset_size_, DistributedSampler::Config{.num_replicas = shard.num_replicas,
                                                 .rank = shard.rank,
                                                 .shuffle = options_.sampler.shuffle().value_or(options_.shuffle),
                                                 .seed = seed_});
  return own_sampler_;
}

void LoaderCore::choose_samplers() {
  std::optional<std::uint64_t> of_context = context_ ? context_->seed : std::nullopt;
  seed_ = options_.seed ? *options_.seed : of_context ? *of_context : global_seed().value_or(0);
  seeds_workers_ = seeds_workers();
  own_sampler_ = nullptr;
  wrapper_ = nullptr;
  if (is_stream_) return;
  const auto& batches = options_.batch_sampler;
  if (!batches.sampler()) {
    sampler_ = shard_sampler(options_.sampler.sampler());
    if (batches.make()) {
      batch_sampler_ = batches.make()(sampler_, options_.batch_size, options_.drop_last);
      if (!batch_sampler_) throw MisuseError("the batch_sampler function returned nothing");
    }
    return;
  }
  batch_sampler_ = batches.sampler();
  sampler_ = batch_sampler_->sampler();
  if (!is_sharded() || (sampler_ && sampler_->is_sharded())) return;
  sampler_ = shard_sampler(sampler_);
  if (!batch_sampler_->set_sampler(sampler_))
    throw MisuseError(
        "this batch sampler cannot be given a rank's share of the samples. Override its set_sampler, pass a function "
        "(sampler, batch_size, drop_last) that makes it, or set .use_distributed_sampler = false and let it choose "
        "this "
        "rank's own batches");
}

void LoaderCore::set_up(LoaderContext context, bool shards, bool moves) {
  if (context_)
    throw MisuseError("this loader is set up already: use the one that setup_dataloader returned, and set it up once");
  if (iterating_) throw MisuseError("this loader is being iterated: set it up before its first use");
  // A state that was loaded before has to fit the place in the job, and the samplers that are chosen anew, too.
  Value loaded = resuming_ ? state_dict() : Value();
  context_ = std::move(context);
  options_.use_distributed_sampler &= shards;
  options_.move_to_device &= moves;
  try {
    choose_samplers();
    if (!loaded.is_null()) load_state_dict(loaded);
    if (shares_order()) agree_with_ranks();
  } catch (...) {
    context_.reset();
    throw;
  }
  moves_ = options_.move_to_device && context_->device.has_value();
  pins_ = options_.pin_memory && at::getAccelerator().has_value();
  if (options_.pin_memory && !pins_) log::warn_once("pin_memory does nothing: there is no device to copy to");
}

std::optional<c10::Device> LoaderCore::device() const { return moves_ ? context_->device : std::nullopt; }

std::optional<std::size_t> LoaderCore::size() const {
  if (batch_sampler_) return batch_sampler_->size();
  if (!sampler_) return std::nullopt;
  auto samples = sampler_->size();
  if (!samples) return std::nullopt;
  return options_.drop_last ? *samples / options_.batch_size
                            : (*samples + options_.batch_size - 1) / options_.batch_size;
}

void LoaderCore::move_to_epoch(std::int64_t epoch) {
  epoch_ = epoch;
  consumed_ = 0;
  ahead_.clear();
  skipped_samples_ = 0;
  resuming_ = false;
  saved_sampler_state_ = {};
  order_.reset();
  if (own_sampler_) own_sampler_->skip_front(0);
}

void LoaderCore::set_epoch(std::int64_t epoch) {
  require(epoch >= 0, "epoch " + std::to_string(epoch) + ": epochs count from 0");
  if (iterating_)
    explicit_epoch_ = epoch;
  else if (!(resuming_ && epoch == epoch_))
    move_to_epoch(epoch);
}

std::uint64_t LoaderCore::begin() {
  ++iteration_;
  last_batch_.reset();
  bool resuming = std::exchange(resuming_, false);
  bool broken_off = !resuming && (consumed_ > 0 || !ahead_.empty());
  if (auto wanted = std::exchange(explicit_epoch_, std::nullopt))
    move_to_epoch(*wanted);
  else if (broken_off)
    move_to_epoch(epoch_ + 1);
  iterating_ = true;
  try {
    begin_samplers(resuming);
  } catch (...) {
    begin_failed();
    throw;
  }
  return iteration_;
}

void LoaderCore::begin_failed() {
  iterating_ = false;
  resuming_ = true;
}

Value LoaderCore::sampler_state() const {
  Value state = batch_sampler_ ? batch_sampler_->state_dict() : Value();
  return state.is_null() && sampler_ ? sampler_->state_dict() : state;
}

void LoaderCore::restore_sampler(const Value& state) {
  if (batch_sampler_ && (!sampler_ || !batch_sampler_->state_dict().is_null()))
    batch_sampler_->load_state_dict(state);
  else
    sampler_->load_state_dict(state);
}

void LoaderCore::begin_samplers(bool resuming) {
  worker_base_ = seeds_workers_
                     ? seed_ + static_cast<std::uint64_t>(epoch_)
                     : at::detail::getDefaultCPUGenerator().get<at::CPUGeneratorImpl>()->random64() & 0xFFFFFFFF;
  plan_ = nullptr;
  cursor_ = 0;
  drawn_ahead_.clear();
  if (is_stream_) return;
  if (resuming && !saved_sampler_state_.is_null())
    restore_sampler(saved_sampler_state_);
  else
    saved_sampler_state_ = sampler_state();
  if (own_sampler_) own_sampler_->skip_front(skipped_samples_);
  if (sampler_) {
    sampler_->set_epoch(epoch_);
    sampler_->reset();
  }
  if (batch_sampler_) {
    batch_sampler_->set_epoch(epoch_);
    batch_sampler_->reset();
  } else {
    plan_ = sampler_->indices();
  }
  if (wrapper_ && shares_order()) compare_order_over_ranks();
  // A batch sampler may add an order of its own to what its sampler's state brings back.
  bool has_state = batch_sampler_ ? !batch_sampler_->state_dict().is_null() : !saved_sampler_state_.is_null();
  auto mark = draw_used_again(has_state);
  // Marks of two kinds, or of two ranks' batches, cannot be compared.
  if (resuming && order_ && mark && order_->rank == mark->rank && order_->hash != mark->hash)
    throw MisuseError(
        "the sampler gives epoch " + std::to_string(epoch_) +
        " another order than when the state was saved, so the samples that are left cannot be told from "
        "those that were used. Let the sampler derive its order from set_epoch alone, give it a state_dict "
        "and load_state_dict that bring the order back, or use .shuffle = true; or start the epoch anew "
        "with set_epoch instead of loading this state");
  order_ = mark;
}

std::optional<LoaderCore::OrderMark> LoaderCore::draw_used_again(bool has_state) {
  bool is_known = has_state || (own_sampler_ && !batch_sampler_);
  bool is_whole = wrapper_ && !batch_sampler_;
  std::optional<OrderMark> mark;
  if (!is_known && is_whole) mark = OrderMark{wrapper_->order_hash(), std::nullopt};
  if (!is_known && !is_whole) mark = OrderMark{0, context_ ? context_->rank : 0};
  if (plan_ && (is_known || is_whole)) {
    cursor_ = std::min(plan_->size(), consumed_ * options_.batch_size);
    return mark;
  }
  std::size_t end = consumed_;
  for (std::size_t batch : ahead_) end = std::max(end, batch + 1);
  std::vector<std::size_t> buffer;
  c10::ArrayRef<std::size_t> indices;
  for (std::size_t batch = 0; batch < end && draw_indices(buffer, indices); ++batch) {
    if (mark && is_consumed(batch)) mark->hash += order_hash(indices, batch);
    if (batch >= consumed_) drawn_ahead_.push_back(indices.vec());
  }
  return mark;
}

void LoaderCore::check_current(std::uint64_t iteration) const {
  if (iteration != iteration_)
    throw MisuseError(
        "this loader was started again or restored while an iteration over it was going on; its batches belong to the "
        "newer one. For two iterations at a time set up two loaders");
}

bool LoaderCore::is_consumed(std::size_t batch) const {
  return batch < consumed_ || std::find(ahead_.begin(), ahead_.end(), batch) != ahead_.end();
}

void LoaderCore::check_indices(c10::ArrayRef<std::size_t> indices) const {
  if (own_sampler_ && !batch_sampler_) return;
  for (std::size_t index : indices)
    if (dataset_size_ && index >= *dataset_size_)
      throw MisuseError("the sampler gave index " + std::to_string(index) + ", but the dataset has " +
                        std::to_string(*dataset_size_) + " samples");
}

bool LoaderCore::next_indices(std::vector<std::size_t>& buffer, c10::ArrayRef<std::size_t>& indices) {
  if (drawn_ahead_.empty()) return draw_indices(buffer, indices);
  buffer = std::move(drawn_ahead_.front());
  drawn_ahead_.pop_front();
  indices = buffer;
  return true;
}

bool LoaderCore::draw_indices(std::vector<std::size_t>& buffer, c10::ArrayRef<std::size_t>& indices) {
  std::size_t want = options_.batch_size;
  if (batch_sampler_) {
    if (!batch_sampler_->next(buffer)) return false;
    if (buffer.empty()) throw MisuseError("the batch sampler gave a batch without samples");
    indices = buffer;
  } else if (plan_) {
    indices = c10::ArrayRef<std::size_t>(*plan_).slice(cursor_, std::min(want, plan_->size() - cursor_));
    cursor_ += indices.size();
  } else {
    buffer.clear();
    while (buffer.size() < want) {
      auto index = sampler_->next();
      if (!index) break;
      buffer.push_back(*index);
    }
    indices = buffer;
  }
  if (!batch_sampler_ && (indices.empty() || (options_.drop_last && indices.size() < want))) return false;
  check_indices(indices);
  return true;
}

void LoaderCore::consumed(std::size_t batch, c10::ArrayRef<std::size_t> indices) {
  if (order_ && order_->rank) order_->hash += order_hash(indices, batch);
  last_batch_ = LastBatch{indices.size(), repeated_in(batch)};
  if (batch != consumed_) {
    ahead_.push_back(batch);
    return;
  }
  do {
    ++consumed_;
  } while (std::erase(ahead_, consumed_) > 0);
}

void LoaderCore::end(std::uint64_t iteration, bool complete) {
  if (iteration != iteration_) return;
  iterating_ = false;
  if (complete) move_to_epoch(epoch_ + 1);
  if (auto wanted = std::exchange(explicit_epoch_, std::nullopt)) move_to_epoch(*wanted);
}

void LoaderCore::place(at::Tensor& tensor) const {
  c10::Device target = *context_->device;
  if (tensor.device().type() == target.type() && (!target.has_index() || target.is_cpu() || tensor.device() == target))
    return;
  tensor = context_->to_device ? context_->to_device(tensor) : moved_to(tensor, target);
}

void LoaderCore::warn_opaque(const char* type_name) const {
  log::warn_once(
      "batches of type " + c10::demangle(type_name) +
      " have members that Fabric cannot look into, so tensors in them were not moved to the device: list them "
      "with FABRIC_TENSORS(Type, members…), or set .move_to_device = false");
}

Value LoaderCore::state_dict() const {
  Value state;
  state["epoch"] = epoch_;
  state["batch"] = consumed_;
  Value::List ahead;
  for (std::size_t batch : ahead_) ahead.emplace_back(batch);
  state["ahead"] = std::move(ahead);
  state["skipped"] = skipped_samples_;
  state["samples"] = dataset_size_ ? Value(*dataset_size_) : Value();
  state["batch_size"] = options_.batch_size;
  state["num_replicas"] = world_size();
  state["shuffle"] = own_sampler_ && own_sampler_->config().shuffle;
  state["seed"] = seed_;
  state["sampler"] = saved_sampler_state_.is_null() ? sampler_state() : saved_sampler_state_;
  state["order"] = order_ ? Value(static_cast<std::int64_t>(order_->hash)) : Value();
  state["order_rank"] = order_ && order_->rank ? Value(*order_->rank) : Value();
  return state;
}

bool LoaderCore::per_rank() const {
  const bool alone = !context_ || !context_->shard || context_->shard->num_replicas == 1;
  return !alone && !options_.use_distributed_sampler && !sampler_state().is_null();
}

void LoaderCore::load_state_dict(const Value& state) {
  for (const char* key :
       {"epoch", "batch", "ahead", "skipped", "samples", "batch_size", "num_replicas", "shuffle", "seed"})
    if (!state.find(key)) throw MisuseError(std::string("this is no state of a loader: it has no '") + key + "'");
  bool in_epoch =
      state.at("batch").as_int() > 0 || !state.at("ahead").as_list().empty() || state.at("skipped").as_int() > 0;
  std::int64_t epoch = state.at("epoch").as_int();
  if (epoch < 0 || state.at("batch").as_int() < 0 || state.at("skipped").as_int() < 0)
    throw MisuseError("this is no state of a loader: it has negative numbers");
  if (in_epoch)
    restore_position(state);
  else
    move_to_epoch(epoch);
  resuming_ = true;
  iterating_ = false;
  explicit_epoch_.reset();
  ++iteration_;
  seed_ = static_cast<std::uint64_t>(state.at("seed").as_int());
  if (own_sampler_) own_sampler_->set_seed(seed_);
  if (const Value* sampler = state.find("sampler")) saved_sampler_state_ = *sampler;
  // States of older versions have no mark.
  const Value *order = state.find("order"), *rank = state.find("order_rank");
  if (!in_epoch || !order || !order->is_int()) return;
  order_ = OrderMark{static_cast<std::uint64_t>(order->as_int()), std::nullopt};
  if (rank && rank->is_int()) order_->rank = static_cast<int>(rank->as_int());
}

void LoaderCore::restore_position(const Value& state) {
  auto number = [&](const char* key) { return static_cast<std::size_t>(state.at(key).as_int()); };
  auto refuse = [&](const std::string& what) {
    throw MisuseError("the state was saved in the middle of an epoch " + what +
                      ". Use the same settings, or start the epoch anew with set_epoch instead of loading this state");
  };
  if (!state.at("samples").is_null() && (!dataset_size_ || number("samples") != *dataset_size_))
    refuse("over " + std::to_string(number("samples")) + " samples, but the dataset has " +
           (dataset_size_ ? std::to_string(*dataset_size_) : "no size") + " now");
  bool shuffles = own_sampler_ && own_sampler_->config().shuffle;
  if (state.at("shuffle").as_bool() != shuffles)
    refuse(std::string("with shuffle ") + (shuffles ? "off, now it is on" : "on, now it is off"));
  bool same = number("batch_size") == options_.batch_size && number("num_replicas") == world_size();
  bool can_deal_anew = own_sampler_ && !batch_sampler_ && state.at("ahead").as_list().empty();
  if (!same && !can_deal_anew)
    refuse("by " + std::to_string(number("num_replicas")) + " ranks with batches of " +
           std::to_string(number("batch_size")) + ", now it is " + std::to_string(world_size()) + " with " +
           std::to_string(options_.batch_size) + ", and the samples that are left cannot be dealt out anew");
  move_to_epoch(state.at("epoch").as_int());
  skipped_samples_ = number("skipped");
  if (same) {
    consumed_ = number("batch");
    for (const auto& batch : state.at("ahead").as_list()) ahead_.push_back(static_cast<std::size_t>(batch.as_int()));
  } else {
    // All ranks together used the front of the padded order, without a gap.
    skipped_samples_ += number("batch") * number("batch_size") * number("num_replicas");
  }
  if (own_sampler_) own_sampler_->skip_front(skipped_samples_);
}

void throw_data_error(std::size_t batch, int worker, std::optional<std::size_t> index,
                      c10::ArrayRef<std::size_t> indices, std::exception_ptr cause) {
  std::string text = index ? "sample " + std::to_string(*index) + " could not be read" : "the batch could not be made";
  text +=
      " (batch " + std::to_string(batch) + ", " + (worker < 0 ? "calling thread" : "worker " + std::to_string(worker));
  if (!index && !indices.empty()) {
    constexpr std::size_t kShown = 8;
    text += ", samples";
    for (std::size_t i = 0; i < std::min(kShown, indices.size()); ++i) text += ' ' + std::to_string(indices[i]);
    if (indices.size() > kShown) text += " …";
  }
  text += "): " + text_of(cause);
  throw DataError(text, batch, worker, index, cause);
}

void throw_worker_timeout(std::size_t batch, int worker, int rank, double seconds) {
  std::string who = worker < 0 ? "no worker" : "worker " + std::to_string(worker);
  throw DataError("rank " + std::to_string(rank) + " waited " + in_seconds(std::chrono::duration<double>(seconds)) +
                      " for batch " + std::to_string(batch) + ", but " + who +
                      " made none in that time. Find out what the dataset's get waits for, or set a longer .timeout",
                  batch, worker, std::nullopt, nullptr);
}

DtypeWatch::DtypeWatch() : usual_(default_dtype()) {}

c10::ScalarType DtypeWatch::default_dtype() { return c10::get_default_dtype_as_scalartype(); }

bool DtypeWatch::warn_if_other(c10::ScalarType dtype) {
  auto seen = seen_.load();
  if (seen == c10::ScalarType::Undefined || dtype == c10::ScalarType::Undefined || dtype == seen) return false;
  log::warn_once(std::string("samples that worker threads read while the model runs are of type ") +
                 c10::toString(dtype) + ", others of type " + c10::toString(seen) +
                 ": the precision changes the default dtype of the whole process for that time. Let the dataset name "
                 "the dtype of the tensors that it makes");
  return true;
}

at::Tensor pin(const at::Tensor& tensor) { return tensor.is_cpu() ? tensor.pin_memory() : tensor; }

// What comes to the CPU is read there without asking a stream.
at::Tensor moved_to(const at::Tensor& tensor, c10::Device device) {
  return tensor.to(device, tensor.scalar_type(), /*non_blocking=*/!device.is_cpu());
}

}  // namespace detail
}  // namespace fabric
