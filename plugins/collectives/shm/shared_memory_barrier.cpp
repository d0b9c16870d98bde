#include "plugins/collectives/shm/shared_memory_barrier.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

#include "plugins/collectives/plain_number.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/shm/patience.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {

// One cache line per rank: written by that rank, read by all.
struct alignas(64) SharedMemoryBarrier::Line {
  std::atomic<std::uint64_t> arrived;
  // Two, by the parity of the count: a rank may be one operation ahead of one that still reads.
  std::atomic<std::int64_t> mark[2];
  std::atomic<std::int64_t> brought[2][2];
  std::atomic<std::uint32_t> gave_up;
  std::atomic<std::uint32_t> left;
};

namespace {

using std::chrono::milliseconds;

constexpr std::size_t kMostEach = 64 * 1024, kMostTogether = 256 * 1024;

std::string fresh_name() {
  std::random_device random;
  return "/torchfabric." + std::to_string(getpid()) + "." + std::to_string(random());
}

}  // namespace

SharedMemoryBarrier::SharedMemoryBarrier(int rank, int size)
    : rank_(rank),
      size_(size),
      capacity_(std::min(kMostEach, kMostTogether / static_cast<std::size_t>(size)) / sizeof(Line) * sizeof(Line)) {}

SharedMemoryBarrier::SharedMemoryBarrier(int rank, int size, void* memory, Others others)
    : SharedMemoryBarrier(rank, size) {
  others_ = std::move(others);
  take(memory);
}

std::size_t SharedMemoryBarrier::bytes_for(int size) { return SharedMemoryBarrier(0, size).bytes(); }

void SharedMemoryBarrier::take(void* memory) {
  auto* begin = static_cast<char*>(memory);
  bell_.emplace(rank_, size_, begin);
  lines_ = reinterpret_cast<Line*>(begin + Bell::kBytes);
  boxes_ = begin + Bell::kBytes + sizeof(Line) * static_cast<std::size_t>(size_);
}

std::unique_ptr<SharedMemoryBarrier> SharedMemoryBarrier::open(int rank, int size, const std::string& name) {
  std::unique_ptr<SharedMemoryBarrier> barrier(new SharedMemoryBarrier(rank, size));
  barrier->name_ = name.empty() ? fresh_name() : name;
  auto bytes = barrier->bytes();
  int flags = name.empty() ? O_RDWR | O_CREAT | O_EXCL : O_RDWR;
  int fd = shm_open(barrier->name_.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) return nullptr;
  barrier->linked_ = name.empty();
  // posix_fallocate, since a full /dev/shm would otherwise show as SIGBUS later. New memory is zero.
  bool sized = !name.empty() || posix_fallocate(fd, 0, static_cast<off_t>(bytes)) == 0;
  void* memory = sized ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  close(fd);
  if (memory == MAP_FAILED) return nullptr;
  barrier->take(memory);
  barrier->owned_ = memory;
  return barrier;
}

void SharedMemoryBarrier::bring(std::int64_t first, std::int64_t second) {
  auto& brought = lines_[rank_].brought[(count_ + 1) & 1];
  brought[0].store(first, std::memory_order_relaxed);
  brought[1].store(second, std::memory_order_relaxed);
}

std::int64_t SharedMemoryBarrier::brought(int rank, int which) const {
  return lines_[rank].brought[count_ & 1][which].load(std::memory_order_relaxed);
}

void SharedMemoryBarrier::leave() {
  if (!lines_ || lines_[rank_].left.load(std::memory_order_relaxed) != 0) return;
  lines_[rank_].left.store(1);
  bell_->ring();
}

bool SharedMemoryBarrier::has_left(int rank) const { return lines_[rank].left.load() != 0; }

bool SharedMemoryBarrier::everybody_left(const void* memory, int size) {
  const auto* lines = reinterpret_cast<const Line*>(static_cast<const char*>(memory) + Bell::kBytes);
  return std::all_of(lines, lines + size, [](const Line& line) { return line.left.load() != 0; });
}

SharedMemoryBarrier::~SharedMemoryBarrier() {
  leave();
  if (linked_) unlink();
  if (owned_) munmap(owned_, bytes());
}

std::size_t SharedMemoryBarrier::bytes() const {
  return Bell::kBytes + (sizeof(Line) + 2 * capacity_) * static_cast<std::size_t>(size_);
}

void SharedMemoryBarrier::unlink() {
  linked_ = false;
  shm_unlink(name_.c_str());
}

bool SharedMemoryBarrier::meet(std::int64_t mark, const char* operation, milliseconds timeout) {
  auto turn = ++count_;
  auto& mine = lines_[rank_];
  mine.mark[turn & 1].store(mark, std::memory_order_relaxed);
  mine.arrived.store(turn);
  bool same = true, waited = false;
  Patience patience(*bell_, timeout);
  for (int rank = 0; rank < size_; ++rank) {
    auto& line = lines_[rank];
    while (line.arrived.load() < turn) {
      waited = true;
      if (line.gave_up.load(std::memory_order_relaxed)) require_nobody_gave_up(operation);
      auto is_ready = [&] {
        if (others_.meanwhile) others_.meanwhile();
        return line.arrived.load() >= turn || line.gave_up.load() != 0 || (others_.is_gone && line.left.load() != 0);
      };
      if (!patience.wait(is_ready)) give_up(operation, patience.waited());
      if (!patience.is_short() && others_.meanwhile) others_.meanwhile();
      if (others_.is_gone && (has_left(rank) || patience.is_to_look_around())) require_all_alive(operation);
      if (patience.is_to_announce()) announce(operation, patience.waited(), timeout);
    }
    same = same && line.mark[turn & 1].load(std::memory_order_relaxed) == mark;
  }
  if (!waited) bell_->ring();  // perhaps it was this rank alone that the others waited for
  if (turn == 1) [[unlikely]]
    bell_->count_processors();
  require_nobody_gave_up(operation);
  return same;
}

void SharedMemoryBarrier::require_nobody_gave_up(const char* operation) const {
  for (int rank = 0; rank < size_; ++rank)
    if (lines_[rank].gave_up.load(std::memory_order_relaxed))
      throw CollectiveError("rank " + std::to_string(rank_) + ": " + operation + " cannot run, since rank " +
                            std::to_string(rank) + " waited too long for the others and gave up");
}

void SharedMemoryBarrier::require_all_alive(const char* operation) const {
  std::vector<int> gone;
  for (int rank : missing())
    // One that is gone may have come here as the last thing that it did.
    if ((has_left(rank) || others_.is_gone(rank)) && lines_[rank].arrived.load(std::memory_order_acquire) < count_)
      gone.push_back(rank);
  if (gone.empty()) return;
  throw CollectiveError("rank " + std::to_string(rank_) + ": " + operation + " cannot end, since " +
                        list_of_ranks(gone) +
                        (gone.size() == 1 ? " is gone: its process ended, or it left the group"
                                          : " are gone: their processes ended, or they left the group"));
}

std::vector<int> SharedMemoryBarrier::missing() const {
  std::vector<int> missing;
  for (int rank = 0; rank < size_; ++rank)
    if (lines_[rank].arrived.load(std::memory_order_relaxed) < count_) missing.push_back(rank);
  return missing;
}

// The first of those that wait speaks for all.
void SharedMemoryBarrier::announce(const char* operation, milliseconds waited, milliseconds timeout) const {
  auto late = missing();
  for (int rank = 0; rank < rank_; ++rank)
    if (std::find(late.begin(), late.end(), rank) == late.end()) return;
  log::warn("rank " + std::to_string(rank_) + " waits in " + within_task(operation) + " for " +
            std::to_string(std::chrono::duration_cast<std::chrono::seconds>(waited).count()) + " s; " +
            list_of_ranks(late) + " did not come yet. The wait ends after " + plain_number(timeout.count() / 1000.0) +
            " s");
}

void SharedMemoryBarrier::give_up(const char* operation, milliseconds waited) {
  lines_[rank_].gave_up.store(1);
  bell_->ring();
  throw TimeoutError(rank_, operation, waited,
                     list_of_ranks(missing()) + " did not come: ended, stuck, or calling something else");
}

}  // namespace fabric::collectives
