#include "plugins/collectives/group.h"

#include <future>
#include <thread>

#include <fabric/base/log.h>

#include "plugins/collectives/gloo/gloo_backend.h"
#include "plugins/collectives/plain_number.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/store/job_store.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

bool says_timeout(std::string_view text) {
  return text.find("imed out") != std::string_view::npos || text.find("imeout") != std::string_view::npos;
}

// The heart of LibTorch's and Gloo's messages: without the backtrace after it, the source file before it and the good
// advice behind it.
std::string heart_of(std::string_view text) {
  text = text.substr(0, text.find_first_of("\r\n"));
  text = text.substr(0, text.find(". This is typically caused"));
  if (auto end = text.find(".cc:"); text.starts_with('[') && end != std::string_view::npos)
    if (auto bracket = text.find("] ", end); bracket != std::string_view::npos) text.remove_prefix(bracket + 2);
  return std::string(text);
}

// A rank whose wait fails breaks its connections, so that the others that wait fail as well, and leaves a note in the
// store. Who leaves none within a moment is not waiting.
struct Notes {
  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds moment{};

  std::vector<int> missing() const {
    store->set("failed/" + std::to_string(rank), std::vector<std::uint8_t>{1});
    auto end = steady_clock::now() + moment;
    std::vector<int> missing;
    do {
      std::this_thread::sleep_for(milliseconds(20));
      missing.clear();
      for (int other = 0; other < size; ++other)
        if (!store->check({"failed/" + std::to_string(other)})) missing.push_back(other);
    } while (!missing.empty() && steady_clock::now() < end);
    return missing;
  }
};

std::string who_is_missing(const Group& group) {
  constexpr milliseconds kMoment{1500}, kAnswer{1000};
  if (!group.store || group.size == 1) return "";
  if (group.owned) break_connections(*group.cpu);
  Notes notes{group.store, group.rank, group.size, std::min(kMoment, group.timeout)};
  // In a thread, since a store whose server is stopped answers never.
  auto answer = std::make_shared<std::promise<std::vector<int>>>();
  auto missing = answer->get_future();
  std::thread([notes, answer] {
    try {
      answer->set_value(notes.missing());
    } catch (...) {
      answer->set_exception(std::current_exception());
    }
  }).detach();
  std::string server = group.ranks.store_is_external ? "the launcher" : "rank 0";
  if (missing.wait_for(notes.moment + kAnswer) != std::future_status::ready) {
    forget_job_store(group.ranks);
    return "The job's store does not answer: " + server + ", which serves it, is stuck.";
  }
  try {
    auto ranks = missing.get();
    if (ranks.empty()) return "Every rank waited: the connections between them broke.";
    return list_of_ranks(ranks) + " did not come: ended, stuck, or calling something else.";
  } catch (const std::exception&) {
    forget_job_store(group.ranks);
    return "The job's store is gone: " + server + ", which served it, ended.";
  }
}

}  // namespace

void Group::require_usable(const char* operation) const {
  if (closed)
    throw MisuseError(std::string(operation) +
                      " was called after shutdown() of its process group. Create a new group, or " +
                      "shut it down later");
  if (!failure.empty())
    throw CollectiveError(std::string(operation) +
                          " cannot run: this process group failed before and must be created again. " +
                          "The failure was: " + failure);
}

void Group::fail(const char* operation, const std::exception& error, steady_clock::time_point begin) {
  one.clear();
  // Ranks that disagree all know it, none has run anything, and all go on from the same place.
  if (dynamic_cast<const MismatchError*>(&error)) throw;
  if (dynamic_cast<const CollectiveError*>(&error)) {
    failure = error.what();
    throw;
  }
  if (dynamic_cast<const Error*>(&error)) throw;
  auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
  auto reason = heart_of(error.what());
  auto missing = who_is_missing(*this);
  if (says_timeout(reason) || waited >= timeout) {
    TimeoutError timed_out(rank, operation, waited, missing + (missing.empty() ? "" : " ") + "(" + reason + ")");
    failure = timed_out.what();
    throw timed_out;
  }
  failure = "rank " + std::to_string(rank) + ": " + operation + " failed after " +
            plain_number(waited.count() / 1000.0) + " s. " + missing + (missing.empty() ? "" : " ") + "(" + reason +
            ")";
  throw CollectiveError(failure);
}

c10d::Backend& Group::carrier(const at::Tensor& tensor) const {
  return !tensor.is_cpu() && on_device ? *on_device : *cpu;
}

void Group::close() noexcept {
  if (closed) return;
  closed = true;
  try {
    one.clear();
    if (owned && cpu) release_without_waiting(cpu);
    if (owned && on_device) on_device->abort();
    torch_group.reset();
    on_device.reset();
    cpu.reset();
    store.reset();
  } catch (const std::exception& error) {
    log::debug(std::string("closing a process group: ") + error.what());
  }
}

c10::intrusive_ptr<c10d::ProcessGroup> assemble(const Group& group) {
  using Type = c10d::ProcessGroup::BackendType;
  auto store = group.store ? group.store : open_private_store();
  auto made = c10::make_intrusive<c10d::ProcessGroup>(store, group.rank, group.size);
  auto cpu_type = group.backend == "mpi" ? Type::CUSTOM : Type::GLOO;
  made->setBackend(c10::DeviceType::CPU, cpu_type, group.cpu);
  if (group.on_device) made->setBackend(group.device.type(), Type::NCCL, group.on_device);
  made->setDefaultBackend(group.on_device ? Type::NCCL : cpu_type);
  made->setGroupName(group.name);
  return made;
}

}  // namespace fabric::collectives
