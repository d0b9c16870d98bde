// How a unit's pieces come together. A large parameter's pieces are gathered straight to where it is used; the small
// ones of a type travel in one message, and are copied from there. With one rank there is nothing to send: the content
// is cast, or moved to the device.
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>

#include "strategies/sharded/collective.h"
#include "strategies/sharded/unit.h"

namespace fabric::sharded {
namespace {
constexpr const char* kGather = "gather of parameters";
}

struct Unit::Gathering {
  Collectives works;
  std::vector<at::Tensor> borrowed;  // from the pool
  at::Tensor arrived;                // the small parameters, rank by rank
};

void Unit::start_gather(Bundle& bundle, Gathering& gathering) {
  const auto size = static_cast<std::int64_t>(c10::elementSize(bundle.compute_type));
  bundle.gathered.fill(pool_.take(bundle.gathered_elements * size));
  auto borrow = [&](std::int64_t elements) {
    gathering.borrowed.push_back(pool_.take(elements * size));
    return typed(gathering.borrowed.back(), bundle.compute_type, elements);
  };
  const bool as_it_is = bundle.type == bundle.compute_type && settings_.home_device == settings_.device;
  auto sent = [&](const at::Tensor& piece) {
    if (as_it_is) return piece;
    at::Tensor cast = borrow(piece.numel());
    cast.copy_(piece);
    return cast;
  };
  for (Parameter* parameter : bundle.uncut) parameter->flat_whole.copy_(parameter->flat_shard);
  if (bundle.small_piece > 0) {
    at::Tensor piece = sent(bundle.shards.flat(bundle.type, bundle.small_piece, 0));
    gathering.arrived = borrow(bundle.small_piece * settings_.shards.size());
    gathering.works.all_gather(settings_.shards, kGather, gathering.arrived, piece);
  }
  for (Parameter* parameter : bundle.large)
    gathering.works.all_gather(settings_.shards, kGather, parameter->flat_whole, sent(parameter->flat_shard));
}

void Unit::finish_gather(Bundle& bundle, Gathering& gathering) {
  gathering.works.wait();
  if (bundle.small_piece > 0) {
    const std::int64_t ranks = settings_.shards.size();
    at::Tensor by_rank = gathering.arrived.view({ranks, bundle.small_piece});
    for (Parameter* parameter : bundle.small) {
      if (parameter->cut.piece() == 0) continue;
      parameter->flat_whole.view({ranks, parameter->cut.piece()})
          .copy_(by_rank.narrow(1, parameter->offset, parameter->cut.piece()));
    }
  }
  for (auto& buffer : gathering.borrowed) pool_.give(std::move(buffer));
  gathering.borrowed.clear();
  gathering.arrived.reset();
}

void Unit::begin_gather() {
  if (is_gathered_ || is_arriving_ || is_resident()) return;
  c10::InferenceMode outside(false);
  at::NoGradGuard no_grad;
  if (settings_.shards.size() > 1) settings_.shards.require_same(kGather, name_);
  is_arriving_ = true;
  gatherings_.resize(bundles_.size());
  try {
    together(settings_.shards, kGather, [&] {
      for (std::size_t i = 0; i < bundles_.size(); ++i) {
        if (bundles_[i]->is_resident) continue;
        if (!gatherings_[i]) gatherings_[i] = std::make_shared<Gathering>();
        start_gather(*bundles_[i], *gatherings_[i]);
      }
    });
  } catch (...) {
    lose_gathers();
    throw;
  }
}

void Unit::gather() {
  if (is_gathered_ || is_resident()) return;
  begin_gather();
  finish_gathers();
  show_whole();
  is_gathered_ = true;
}

void Unit::finish_gathers() {
  c10::InferenceMode outside(false);
  at::NoGradGuard no_grad;
  try {
    together(settings_.shards, kGather, [&] {
      for (std::size_t i = 0; i < bundles_.size(); ++i)
        if (!bundles_[i]->is_resident) finish_gather(*bundles_[i], *gatherings_[i]);
    });
  } catch (...) {
    lose_gathers();
    throw;
  }
  is_arriving_ = false;
}

// Not back to the pool: somebody may still write there.
void Unit::lose_gathers() {
  is_arriving_ = false;
  for (auto& gathering : gatherings_) {
    if (!gathering) continue;
    for (auto& buffer : gathering->borrowed) pool_.lose(std::move(buffer));
    gathering.reset();
  }
  for (auto& bundle : bundles_)
    if (!bundle->is_resident) pool_.lose(bundle->gathered.empty());
}

// What nobody came to use. A group that failed says so in its next operation.
void Unit::give_up_gathers() noexcept {
  try {
    finish_gathers();
    is_gathered_ = true;  // so that it is let go of
  } catch (const std::exception&) {
  }
}

}  // namespace fabric::sharded
