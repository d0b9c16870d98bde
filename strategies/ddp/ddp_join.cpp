#include "strategies/ddp/ddp_join.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include "strategies/ddp/ddp_engine.h"

namespace fabric::ddp {
namespace {

// Announces each bucket before the module's own hook reduces it.
class AnnouncingHook : public CommHook {
 public:
  AnnouncingHook(JoinSession& session, int module, std::shared_ptr<CommHook> inner)
      : session_(session), module_(module), inner_(std::move(inner)) {}
  Future run(c10d::GradBucket& bucket) override {
    session_.announce(JoinSession::kBucket, module_, static_cast<std::int64_t>(bucket.getIndex()));
    if (session_.scale() != 1) bucket.getBufferRef().mul_(session_.scale());
    return inner_->run(bucket);
  }

 private:
  JoinSession& session_;
  int module_;
  std::shared_ptr<CommHook> inner_;
};

}  // namespace

JoinSession::JoinSession(const ProcessGroup& group, std::vector<std::shared_ptr<Engine>> engines,
                         JoinControl::Options options)
    : group_(group),
      engines_(std::move(engines)),
      options_(std::move(options)),
      message_(at::empty({3}, at::kLong)),
      training_before_end_(group.size()) {
  try {
    for (std::size_t i = 0; i < engines_.size(); ++i) {
      auto hook = engines_[i]->hook();
      hooks_.push_back(hook ? hook : std::make_shared<AllReduceHook>(engines_[i]->traffic()));
      engines_[i]->enter_join(static_cast<int>(i),
                              std::make_shared<AnnouncingHook>(*this, static_cast<int>(i), hooks_[i]));
    }
  } catch (...) {
    leave();  // the hooks of those that entered refer to this object
    throw;
  }
}

JoinSession::~JoinSession() { leave(); }

void JoinSession::leave() noexcept {
  for (auto& engine : engines_) {
    try {
      engine->leave_join();
    } catch (const std::exception&) {
      engine->mark_failed();
    }
  }
}

double JoinSession::scale() const {
  return options_.divide_by_initial_world_size ? 1.0 : static_cast<double>(group_.size()) / training_;
}

JoinSession::Event JoinSession::exchange(const Event& own) {
  auto* out = message_.mutable_data_ptr<std::int64_t>();
  out[0] = own.kind;
  out[1] = own.module;
  out[2] = own.bucket;
  auto all = group_.all_gather(message_);
  Event event;
  training_ = 0;
  std::string ended;
  for (int rank = 0; rank < group_.size(); ++rank) {
    const auto* in = all[rank].const_data_ptr<std::int64_t>();
    if (in[0] == kEnded) {
      ended += (ended.empty() ? "" : ", ") + std::to_string(rank);
      continue;
    }
    Event theirs{static_cast<Kind>(in[0]), in[1], in[2]};
    if (training_++ == 0) {
      event = theirs;
      last_trainer_ = rank;
    } else if (theirs.kind != event.kind || theirs.module != event.module || theirs.bucket != event.bucket) {
      throw MismatchError("inside join, rank " + std::to_string(rank) +
                          " does something else with its models than rank " + std::to_string(last_trainer_) +
                          ": every rank must call the same models in the same order");
    }
  }
  if (training_ > 0) training_before_end_ = training_;
  if (options_.throw_on_early_termination && training_ > 0 && training_ < group_.size())
    throw MismatchError("ranks without more data: " + ended +
                        ". All ranks stop, as throw_on_early_termination asks for");
  return event;
}

int JoinSession::announce(Kind kind, std::int64_t module, std::int64_t bucket) {
  exchange({kind, module, bucket});
  return last_trainer_;
}

void JoinSession::follow() {
  while (true) {
    Event event = exchange({});
    if (event.kind == kEnded) return;
    take_part(event);
  }
}

void JoinSession::take_part(const Event& event) {
  c10::NoGradGuard no_grad;
  Engine& engine = *engines_.at(static_cast<std::size_t>(event.module));
  if (event.kind == kBuffers) {
    engine.buffers()->broadcast(last_trainer_);
    return;
  }
  auto buckets = engine.reducer().get_grad_buckets(/*return_zero_tensors=*/true);
  auto& bucket = buckets.at(static_cast<std::size_t>(event.bucket));
  hooks_[static_cast<std::size_t>(event.module)]->run(bucket)->waitAndThrow();
  if (!bucket.isLast() || !engine.finds_unused()) return;
  // The reducers of the others now sum which parameters were used. Nobody reads the sum here, so nobody waits for it: a
  // rank that is gone shows in the next exchange.
  std::vector<at::Tensor> used{at::zeros_like(engine.reducer().get_local_used_map_on_device())};
  engine.traffic().c10d()->allreduce(used);
}

}  // namespace fabric::ddp
