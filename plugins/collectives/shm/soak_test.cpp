// Mixed operations in shared memory, with sizes, places and delays by chance, each result looked at. A short turn is a
// test; ./dev soak is ten million of them. FABRIC_SOAK_OPERATIONS, FABRIC_SOAK_SEED and FABRIC_SOAK_RANKS say how many.
#include <torch/torch.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <random>
#include <thread>

#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ProcessGroup;

namespace {

std::int64_t setting(const char* name, std::int64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

// What a rank brings: small whole numbers, so that sums are exact in every type.
std::int64_t value_of(std::int64_t operation, int rank, std::int64_t item) {
  return (operation * 31 + rank * 17 + item * 7) % 13;
}

class Soak {
 public:
  // `shared`: the same on all ranks; `own`: not.
  Soak(const ProcessGroup& group, std::int64_t seed)
      : shared_(static_cast<std::uint64_t>(seed)), own_(static_cast<std::uint64_t>(1000 * seed + group.rank() + 1)) {
    use(group);
  }
  void use(const ProcessGroup& group) {
    group_ = group;
    c10d_ = group.c10d()->getBackend(c10::kCPU);
  }
  void operation(std::int64_t number) {
    number_ = number;
    delay();
    constexpr at::ScalarType kTypes[] = {at::kFloat, at::kLong, at::kDouble, at::kBFloat16, at::kInt};
    type_ = kTypes[shared_() % 5];
    count_ = static_cast<std::int64_t>(std::exp(chance() * std::log(shared_() % 64 == 0 ? 300000.0 : 20000.0)));
    mixed_ = shared_() % 4 == 0;
    switch (shared_() % 9) {
      case 0:
      case 1:
        return all_reduce();
      case 2:
        return reduce();
      case 3:
        return broadcast();
      case 4:
        return all_gather();
      case 5:
        return reduce_scatter();
      case 6:
        return all_to_all();
      case 7:
        return around();
      default:
        c10d_->barrier()->wait();
    }
  }

 private:
  double chance() { return static_cast<double>(shared_() % 1000003) / 1000003; }
  int size() const { return group_.size(); }
  int rank() const { return group_.rank(); }
  void delay() {
    if (own_() % 100 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own_() % 300));
    if (own_() % 5000 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(own_() % 8));
  }
  // Private, or where all ranks see it; by chance for each rank, or for all alike.
  Tensor room(std::int64_t count) {
    const auto common = shared_();
    const bool is_shared = (mixed_ ? own_() : common) % 2 == 0;
    auto options = at::TensorOptions(type_);
    return is_shared ? group_.empty({count}, options) : at::empty({count}, options);
  }
  Tensor filled(std::int64_t count, int of) {
    auto items = torch::arange(count, at::kLong);
    return room(count).copy_((items * 7 + (number_ * 31 + of * 17)).remainder(13));
  }
  template <class Expected>
  void look(const Tensor& tensor, Expected expected) {
    const auto count = tensor.numel();
    auto look_at = [&](std::int64_t item) {
      const auto found = tensor[item].item<double>();
      if (found == static_cast<double>(expected(item))) return;
      ranks::fail(__FILE__, __LINE__,
                  "operation " + std::to_string(number_) + " of " + std::to_string(count_) + " " +
                      c10::toString(type_) + ": item " + std::to_string(item) + " is " + std::to_string(found));
    };
    look_at(0);
    look_at(count - 1);
    for (int i = 0; i < 4; ++i) look_at(static_cast<std::int64_t>(own_() % static_cast<std::uint64_t>(count)));
  }
  std::int64_t sum_at(std::int64_t item) const {
    std::int64_t sum = 0;
    for (int other = 0; other < size(); ++other) sum += value_of(number_, other, item);
    return sum;
  }
  void all_reduce() {
    std::vector<Tensor> one{filled(count_, rank())};
    c10d_->allreduce(one)->wait();
    look(one[0], [&](std::int64_t item) { return sum_at(item); });
  }
  void reduce() {
    const int root = static_cast<int>(shared_() % static_cast<unsigned>(size()));
    std::vector<Tensor> one{filled(count_, rank())};
    c10d::ReduceOptions options;
    options.rootRank = root;
    c10d_->reduce(one, options)->wait();
    look(one[0], [&](std::int64_t item) { return rank() == root ? sum_at(item) : value_of(number_, rank(), item); });
  }
  void broadcast() {
    const int root = static_cast<int>(shared_() % static_cast<unsigned>(size()));
    std::vector<Tensor> one{filled(count_, rank())};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    c10d_->broadcast(one, options)->wait();
    look(one[0], [&](std::int64_t item) { return value_of(number_, root, item); });
  }
  void all_gather() {
    auto input = filled(count_, rank()), output = room(count_ * size());
    c10d_->_allgather_base(output, input)->wait();
    look(output, [&](std::int64_t item) { return value_of(number_, static_cast<int>(item / count_), item % count_); });
  }
  void reduce_scatter() {
    auto input = filled(count_ * size(), rank()), output = room(count_);
    c10d_->_reduce_scatter_base(output, input)->wait();
    look(output, [&](std::int64_t item) { return sum_at(rank() * count_ + item); });
  }
  void all_to_all() {
    auto input = filled(count_ * size(), rank()), output = room(count_ * size());
    std::vector<std::int64_t> none;
    c10d_->alltoall_base(output, input, none, none)->wait();
    look(output, [&](std::int64_t item) {
      return value_of(number_, static_cast<int>(item / count_), rank() * count_ + item % count_);
    });
  }
  // To the next rank, from the one before.
  void around() {
    const int before = (rank() + size() - 1) % size(), tag = static_cast<int>(shared_() % 3);
    std::vector<Tensor> out{filled(count_, rank())}, in{room(count_)};
    auto sent = c10d_->send(out, (rank() + 1) % size(), tag);
    delay();
    c10d_->recv(in, before, tag)->wait();
    sent->wait();
    look(in[0], [&](std::int64_t item) { return value_of(number_, before, item); });
  }

  std::mt19937_64 shared_, own_;
  ProcessGroup group_;
  c10::intrusive_ptr<c10d::Backend> c10d_;
  std::int64_t number_ = 0, count_ = 0;
  at::ScalarType type_ = at::kFloat;
  bool mixed_ = false;
};

}  // namespace

RANKS_BODY("mixed operations in shared memory") {
  at::set_num_threads(1);
  at::NoGradGuard no_grad;
  auto group = ranks::group_from_env({.backend = "shm", .timeout_seconds = 60});
  const auto count = setting("FABRIC_SOAK_OPERATIONS", 4000), seed = setting("FABRIC_SOAK_SEED", 1);
  std::vector<int> all(static_cast<std::size_t>(world_size));
  for (int each = 0; each < world_size; ++each) all[static_cast<std::size_t>(each)] = each;
  Soak soak(group, seed);
  for (std::int64_t done = 0; done < count; ++done) {
    if (done % 1000 == 999) soak.use(done % 2000 == 1999 ? group : group.subgroup(all));
    soak.operation(done);
    if (rank == 0 && done % 1000000 == 999999) std::cout << (done + 1) / 1000000 << " million" << std::endl;
  }
  group.barrier();
}

TEST_CASE("a soak of mixed operations in shared memory", "[shm][soak]") {
  const auto ranks = static_cast<int>(setting("FABRIC_SOAK_RANKS", 3));
  ranks::run_and_require(
      "mixed operations in shared memory",
      {.world_size = ranks, .timeout_seconds = 120 + static_cast<double>(setting("FABRIC_SOAK_OPERATIONS", 0)) / 100});
}
