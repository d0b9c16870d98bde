#include <fabric/data/worker_info.h>

#include <mutex>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <fabric/data/seed.h>

namespace fabric {
namespace {

struct ThreadState {
  WorkerInfo outside;
  WorkerInfo inside;
  WorkerInfo* current = &outside;
};

ThreadState& thread_state() {
  static thread_local ThreadState state;
  return state;
}

}  // namespace

WorkerInfo& worker_info() { return *thread_state().current; }

at::Generator& WorkerInfo::generator() {
  if (seeded_) return generator_;
  if (!in_loader_) {
    generator_ = at::globalContext().defaultGenerator(c10::Device(c10::kCPU));
  } else {
    if (!generator_.defined()) generator_ = at::make_generator<at::CPUGeneratorImpl>();
    std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_current_seed(batch_seed_);
  }
  seeded_ = true;
  return generator_;
}

WorkerScope::WorkerScope(const SeedBase& seeds, int id, int num_workers, std::size_t batch)
    : previous_(thread_state().current) {
  auto& state = thread_state();
  // A dataset may itself iterate over a loader; the inner one then gets an entry of its own.
  WorkerInfo& info = previous_ == &state.outside ? state.inside : nested_.emplace();
  info.id = id;
  info.num_workers = num_workers;
  info.rank = seeds.rank;
  info.batch = batch;
  auto base = static_cast<std::uint64_t>(seeds.base);
  auto worker = static_cast<std::uint64_t>(id), rank = static_cast<std::uint64_t>(seeds.rank);
  info.seed = worker_seed(base, worker, rank).generator;
  constexpr std::uint64_t kGoldenRatio = 0x9E3779B97F4A7C15ull;
  info.batch_seed_ = mix_bits(worker_seed(base, 0, rank).second + (batch + 1) * kGoldenRatio);
  info.seeded_ = false;
  info.in_loader_ = true;
  state.current = &info;
}

WorkerScope::~WorkerScope() { thread_state().current = previous_; }

}  // namespace fabric
