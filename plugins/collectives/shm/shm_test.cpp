// The process group in shared memory, where it differs from the others: pieces, ranks that die, sends and receives.
#include <torch/torch.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/fabric.h>
#include <fabric/plugins/collectives/process_group.h>

#include "tests/support/failure_of.h"
#include "tests/support/group_of_ranks.h"

using at::Tensor;
using fabric::ProcessGroup;
using fabric::ReduceOp;
using std::chrono::steady_clock;

namespace {

ProcessGroup shm_group(double timeout_seconds = 60, bool check = true) {
  return ranks::group_from_env({.backend = "shm", .timeout_seconds = timeout_seconds, .check = check});
}

double seconds_since(steady_clock::time_point begin) {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Numbers whose sums depend on the order in which they are added.
Tensor mixed(std::int64_t count, int rank) {
  auto generator = at::detail::createCPUGenerator(100 + rank);
  return torch::randn({count}, generator) * torch::pow(10, torch::randint(-6, 7, {count}, generator));
}

}  // namespace

RANKS_TEST("tensors larger than a slot go in pieces, and sums are taken in the order of the ranks", "[shm]", 3) {
  at::set_num_threads(1);
  auto group = shm_group();
  RANK_CHECK(group.backend() == "shm");
  for (std::int64_t count : {1, 7, 20000, 87381, 1000003}) {
    auto expected = mixed(count, 0);
    for (int other = 1; other < world_size; ++other) expected = expected + mixed(count, other);
    RANK_CHECK(torch::equal(group.all_reduce(mixed(count, rank), ReduceOp::sum), expected));
    auto reduced = group.reduce(mixed(count, rank), ReduceOp::sum, 1);
    if (rank == 1) RANK_CHECK(torch::equal(reduced, expected));
    auto copy = rank == 2 ? mixed(count, 7) : torch::zeros({count});
    group.broadcast_(copy, 2);
    RANK_CHECK(torch::equal(copy, mixed(count, 7)));
    auto all = group.all_gather(mixed(count, rank));
    std::vector<Tensor> parts;
    for (int other = 0; other < world_size; ++other) {
      RANK_CHECK(torch::equal(all[static_cast<std::size_t>(other)], mixed(count, other)));
      parts.push_back(mixed(count, 10 * rank + other));
    }
    auto scattered = group.reduce_scatter(parts, ReduceOp::sum);
    Tensor sum = mixed(count, rank);
    for (int other = 1; other < world_size; ++other) sum = sum + mixed(count, 10 * other + rank);
    RANK_CHECK(torch::equal(scattered, sum));
  }
}

RANKS_TEST("sends and receives of any size, both ways at once, from any rank, by tag", "[shm]", 3) {
  auto group = shm_group();
  auto* c10d = group.c10d().get();
  const int next = (rank + 1) % 3, before = (rank + 2) % 3;
  for (std::int64_t count : {0, 1, 5000, 400000}) {
    // Everybody sends first: what does not fit into the ring moves while the receive is waited for.
    std::vector<Tensor> out{mixed(count, rank)}, in{torch::zeros({count})};
    auto sent = c10d->send(out, next, 3);
    auto received = c10d->recv(in, before, 3);
    received->wait();
    sent->wait();
    RANK_CHECK(torch::equal(in[0], mixed(count, before)));
  }
  // Later messages of another tag are waited for first.
  if (rank == 0) {
    std::vector<Tensor> a{torch::full({4}, 1.0)}, b{torch::full({4}, 2.0)};
    auto first = c10d->send(a, 1, 1), second = c10d->send(b, 1, 2);
    first->wait();
    second->wait();
  } else if (rank == 1) {
    std::vector<Tensor> a{torch::zeros({4})}, b{torch::zeros({4})};
    c10d->recv(b, 0, 2)->wait();
    c10d->recv(a, 0, 1)->wait();
    RANK_CHECK(a[0][0].item<double>() == 1 && b[0][0].item<double>() == 2);
  }
  auto pair = group.subgroup({0, 1});
  if (rank == 2) {
    bool seen[2] = {};
    for (int i = 0; i < 2; ++i) {
      std::vector<Tensor> in{torch::zeros({100000})};
      auto work = c10d->recvAnysource(in, 5);
      work->wait();
      auto source = work->sourceRank();
      RANK_CHECK((source == 0 || source == 1) && in[0][99999].item<float>() == static_cast<float>(source + 1));
      seen[source] = true;
    }
    RANK_CHECK(seen[0] && seen[1]);
  } else {
    std::vector<Tensor> out{torch::full({100000}, rank + 1.0, torch::kFloat)};
    auto work = c10d->send(out, 2, 5);
    if (rank == 1) work->wait();
    pair.barrier();
    work->wait();
  }
  group.barrier();
}

RANKS_TEST("a rank that waits for a message sleeps, also in a meeting of others", "[shm]", 2) {
  auto group = shm_group();
  auto* c10d = group.c10d().get();
  constexpr std::int64_t kCount = 400000;  // much more than fits on the way
  group.barrier();
  for (bool in_meeting : {false, true}) {
    std::vector<Tensor> tensor{rank == 0 ? torch::zeros({kCount}) : mixed(kCount, 5)};
    rusage before{}, after{};
    getrusage(RUSAGE_THREAD, &before);
    auto begin = steady_clock::now();
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(400));
    auto work = rank == 0 ? c10d->recv(tensor, 1, 1) : c10d->send(tensor, 0, 1);
    if (rank == 0 && in_meeting) group.barrier();
    work->wait();
    if (rank == 1 && in_meeting) group.barrier();
    getrusage(RUSAGE_THREAD, &after);
    RANK_CHECK(torch::equal(tensor[0], mixed(kCount, 5)));
    // A few for each part that fits on the way, and ten a second.
    RANK_CHECK(after.ru_nvcsw - before.ru_nvcsw < 250);
    RANK_CHECK(seconds_since(begin) < 5);
    group.barrier();
  }
}

RANKS_BODY("killed in shared memory") {
  auto group = shm_group(120);
  group.barrier();
  if (rank == 2) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    kill(getpid(), SIGKILL);
  }
  auto begin = steady_clock::now();
  auto text = failure_of<fabric::CollectiveError>([&] {
    auto one = torch::ones({1});
    if (rank == 0)
      group.all_reduce(one, ReduceOp::sum);
    else
      group.recv_(one, 2);
  });
  // The other one that waited may have found it before, and ended.
  RANK_CHECK(has(text, "rank 2 is gone") || has(text, "ranks 1, 2 are gone"));
  RANK_CHECK(seconds_since(begin) < 10);
  RANK_CHECK(!group.is_usable());
  // Nor does the end of the other one hang.
  group.shutdown();
  _exit(7);
}

TEST_CASE("a rank that is killed is named within moments, in every kind of wait", "[shm][failures]") {
  auto outcomes = ranks::run("killed in shared memory", {.world_size = 3});
  for (int rank : {0, 1}) {
    INFO(outcomes[static_cast<std::size_t>(rank)].output);
    CHECK(outcomes[static_cast<std::size_t>(rank)].exit_code == 7);
  }
  CHECK(outcomes[2].exit_code == 128 + SIGKILL);
}

RANKS_BODY("no shared memory") {
  if (rank == 0) {
    // Nothing that has a size may be made; without this the system would end the process.
    rlimit none{4096, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &none);
    none.rlim_cur = 4096;
    RANK_CHECK(setrlimit(RLIMIT_FSIZE, &none) == 0);
  }
  auto text = failure_of<fabric::UnavailableError>([] { shm_group(); });
  RANK_CHECK(has(text, "rank 0: the ranks cannot share memory: ") && has(text, "ulimit -f"));
  auto group = ranks::group_from_env();
  RANK_CHECK(group.backend() == "gloo");
  RANK_CHECK(group.all_reduce(torch::ones({3}), ReduceOp::sum)[2].item<double>() == 2);
  auto part = group.subgroup({0, 1});
  part.barrier();
  RANK_CHECK(part.backend() == "gloo");
}

TEST_CASE("where ranks cannot share memory, auto takes gloo on all of them and says why once", "[shm][failures]") {
  auto outcomes = ranks::run("no shared memory", {});
  std::size_t said = 0;
  for (const auto& each : outcomes) {
    INFO(each.output);
    CHECK(each.exit_code == 0);
    const std::string words = "the process group goes over gloo: rank 0: the ranks cannot share memory";
    for (auto at = each.output.find(words); at != std::string::npos; at = each.output.find(words, at + 1)) ++said;
  }
  CHECK(said == 1);
}

RANKS_BODY("another view of processes") {
  if (rank == 1) {
    // As in another container: the other rank's descriptors are not to be seen here.
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("none", "/proc", "tmpfs", 0, nullptr) != 0)
      std::cout << "not allowed here" << std::endl;
  }
  auto group = ranks::group_from_env();
  std::cout << "over " << group.backend() << std::endl;
  RANK_CHECK(group.all_reduce(torch::ones({3}), ReduceOp::sum)[2].item<double>() == 2);
}

TEST_CASE("ranks in another container go over gloo", "[shm][failures]") {
  auto outcomes = ranks::run("another view of processes", {});
  for (const auto& each : outcomes) {
    INFO(each.output);
    CHECK(each.exit_code == 0);
    if (has(outcomes[1].output, "not allowed here"))
      WARN("left out: this user cannot make a container");
    else
      CHECK(has(each.output, "over gloo"));
  }
}

RANKS_TEST("more ranks than processors, and a group of some of them", "[shm]", 8) {
  at::set_num_threads(1);
  auto group = shm_group();
  auto even = group.subgroup({0, 2, 4, 6}), odd = group.subgroup({1, 3, 5, 7});
  auto& half = rank % 2 == 0 ? even : odd;
  for (int i = 0; i < 50; ++i) {
    auto all = group.all_reduce(torch::full({1000 + 30000 * (i % 3)}, rank + i, torch::kLong), ReduceOp::sum);
    RANK_CHECK((all == 28 + 8 * i).all().item<bool>());
    auto some = half.all_reduce(torch::full({5}, rank, torch::kLong), ReduceOp::sum);
    RANK_CHECK(some[0].item<std::int64_t>() == (rank % 2 == 0 ? 12 : 16));
  }
}

RANKS_TEST("ddp trains in shared memory as over gloo", "[shm][ddp]", 2) {
  at::set_num_threads(1);
  std::vector<Tensor> results;
  for (const char* backend : {"gloo", "shm"}) {
    fabric::Fabric fabric(
        {.accelerator = "cpu",
         .strategy = fabric::Choice("ddp", {{"process_group", fabric::Tree::Map{{"backend", backend}}}}),
         .devices = 2});
    fabric.launch();
    fabric.seed_everything(3, true, false);
    auto [model, optimizer] =
        fabric.setup(torch::nn::Linear(30, 20), [](auto parameters) { return torch::optim::SGD(parameters, 0.1); });
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      fabric.backward(model(torch::full({4, 30}, 0.1 * (step + rank))).square().mean());
      optimizer.step();
    }
    results.push_back(model->weight.detach().clone());
    fabric.shutdown();
  }
  RANK_CHECK(torch::equal(results[0], results[1]));
}
