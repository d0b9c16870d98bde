#include "plugins/collectives/shm/arena.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>

#include "tests/support/catch.h"

using fabric::collectives::Arena;

namespace {

constexpr std::size_t kMebi = 1 << 20;

struct Memory {
  explicit Memory(std::size_t bytes) : bytes(bytes) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(mapped != MAP_FAILED);
    begin = static_cast<char*>(mapped);
  }
  ~Memory() { munmap(begin, bytes); }
  bool holds(const at::Tensor& tensor) const {
    auto* at = static_cast<const char*>(tensor.const_data_ptr());
    return at >= begin && at + tensor.nbytes() <= begin + bytes;
  }
  std::size_t pages() const {
    std::vector<unsigned char> there((bytes + 4095) / 4096);
    REQUIRE(mincore(begin, bytes, there.data()) == 0);
    std::size_t count = 0;
    for (auto page : there) count += page & 1;
    return count;
  }
  std::size_t bytes;
  char* begin = nullptr;
};

std::shared_ptr<Arena> arena_in(const std::shared_ptr<Memory>& memory) {
  return Arena::make(memory, memory->begin, memory->bytes);
}

}  // namespace

TEST_CASE("tensors of an arena are tensors like any other, and keep it", "[shm][arena]") {
  auto memory = std::make_shared<Memory>(64 * kMebi);
  auto arena = arena_in(memory);
  auto tensor = arena->empty({3, 5}, at::kHalf);
  CHECK(memory->holds(tensor));
  CHECK((tensor.sizes() == at::IntArrayRef{3, 5} && tensor.scalar_type() == at::kHalf && tensor.is_contiguous()));
  CHECK(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 64 == 0);
  auto parameter = arena->empty({4}, at::TensorOptions().dtype(at::kDouble).requires_grad(true));
  CHECK((parameter.requires_grad() && parameter.is_leaf()));
  CHECK(arena->empty({0}, at::kFloat).numel() == 0);
  tensor.fill_(2);
  tensor.resize_({300});  // grows where it came from
  CHECK((memory->holds(tensor) && tensor[14].item<float>() == 2));
  tensor.resize_({0}).storage().unsafeGetStorageImpl()->set_nbytes(0);
  std::weak_ptr<Memory> rest = memory;
  memory.reset();
  arena.reset();
  parameter.detach().fill_(1);
  CHECK(parameter.sum().item<double>() == 4);
  parameter.reset();
  tensor.reset();
  CHECK(rest.expired());
}

TEST_CASE("an arena that is full gives ordinary memory", "[shm][arena]") {
  auto memory = std::make_shared<Memory>(kMebi);
  auto arena = arena_in(memory);
  auto large = arena->empty({800 * 1024}, at::kByte), more = arena->empty({800 * 1024}, at::kByte);
  CHECK((memory->holds(large) && !memory->holds(more)));
  more.fill_(1);
  large.reset();
  CHECK(memory->holds(arena->empty({800 * 1024}, at::kByte)));
  CHECK_FALSE(memory->holds(arena_in(std::make_shared<Memory>(4096))->empty({5000}, at::kByte)));
}

TEST_CASE("an arena uses freed memory again, never memory in use, from any thread", "[shm][arena]") {
  auto memory = std::make_shared<Memory>(256 * kMebi);
  auto arena = arena_in(memory);
  std::atomic<int> wrong = 0;
  auto run = [&](unsigned seed) {
    std::minstd_rand random(seed);
    std::vector<std::pair<at::Tensor, std::uint8_t>> held;
    for (int i = 0; i < 3000; ++i) {
      if (held.size() < 40 && random() % 2 == 0) {
        auto bytes = static_cast<std::int64_t>(1 + random() % (random() % 8 == 0 ? 400000 : 5000));
        auto mark = static_cast<std::uint8_t>(random());
        held.emplace_back(arena->empty({bytes}, at::kByte).fill_(mark), mark);
        wrong += !memory->holds(held.back().first);
      } else if (!held.empty()) {
        std::swap(held[random() % held.size()], held.back());
        wrong += !(held.back().first == held.back().second).all().item<bool>();
        held.pop_back();
      }
    }
  };
  std::thread other(run, 1);
  run(2);
  other.join();
  CHECK(wrong.load() == 0);
  CHECK(arena->usage().used == 0);
}

TEST_CASE("an arena gives memory back to the system, but not all that will be needed again", "[shm][arena]") {
  auto memory = std::make_shared<Memory>(512 * kMebi);
  auto arena = arena_in(memory);
  auto fill = [&](std::size_t mebi) {
    return arena->empty({static_cast<std::int64_t>(mebi * kMebi)}, at::kByte).fill_(1);
  };
  for (int i = 0; i < 20; ++i) fill(32);
  CHECK(memory->pages() == 32 * kMebi / 4096);
  auto a = fill(100), b = fill(100), c = fill(100);
  a.reset();
  b.reset();
  CHECK(memory->pages() <= 202 * kMebi / 4096);
  c.reset();
  CHECK(memory->pages() <= 66 * kMebi / 4096);
  CHECK(arena->usage().kept <= 64 * kMebi);
  CHECK((fill(300) == 1).all().item<bool>());
}

TEST_CASE("an arena that is retired and one in a copy of the process hand out nothing of theirs", "[shm][arena]") {
  auto memory = std::make_shared<Memory>(4 * kMebi);
  auto arena = arena_in(memory);
  auto tensor = arena->empty({1000}, at::kFloat).fill_(3);
  if (pid_t child = fork(); child == 0) {
    const bool ordinary = !memory->holds(arena->empty({1000}, at::kFloat));
    tensor.reset();
    _exit(ordinary && arena->usage().used > 0 ? 0 : 1);
  } else {
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
  arena->retire();
  auto* before = tensor.const_data_ptr();
  tensor.reset();
  auto next = arena->empty({1000}, at::kFloat);
  CHECK((next.const_data_ptr() != before && !memory->holds(next)));
}
