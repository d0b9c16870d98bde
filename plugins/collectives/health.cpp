#include "plugins/collectives/health.h"

#include <future>
#include <thread>

#include <c10/util/Exception.h>

#include <fabric/base/error.h>

#include "fabric/torch/messages_internal.h"
#include "plugins/collectives/plain_number.h"
#include "plugins/collectives/rank_list.h"
#include "plugins/collectives/store/job_store.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A rank whose wait fails breaks its connections, so that the others that wait fail as well, and leaves a note in the
// store. Who leaves none within a moment is not waiting.
struct Notes {
  c10::intrusive_ptr<c10d::Store> store;
  int rank = 0;
  int size = 1;
  std::chrono::milliseconds moment{};
  std::string what;  // this rank was doing

  // What each rank was doing; nothing of one that is missing.
  std::vector<std::string> collect() const {
    auto key = [](int rank) { return "failed/" + std::to_string(rank); };
    store->set(key(rank), std::vector<std::uint8_t>(what.begin(), what.end()));
    auto end = steady_clock::now() + moment;
    std::vector<bool> is_there(static_cast<std::size_t>(size));
    bool complete = false;
    while (!complete && steady_clock::now() < end) {
      std::this_thread::sleep_for(milliseconds(20));
      complete = true;
      for (int other = 0; other < size; ++other) {
        if (!is_there[other]) is_there[other] = store->check({key(other)});
        complete = complete && is_there[other];
      }
    }
    std::vector<std::string> texts(is_there.size());
    for (int other = 0; other < size; ++other)
      if (is_there[other]) texts[other] = store->get_to_str(key(other));
    return texts;
  }
};

struct Diagnosis {
  std::string who;    // did not come
  std::string lines;  // what each rank was doing
};

Diagnosis diagnose(const Identity& id, Transport& transport, const char* operation, const LinesOfRanks& all_ranks) {
  constexpr milliseconds kMoment{1500}, kAnswer{1000};
  if (!transport.store || id.size == 1) return {};
  if (transport.owned && transport.cpu) transport.cpu->break_connections();
  Notes notes{transport.store, id.rank, id.size, std::min(kMoment, id.timeout),
              Activity::of_process().within_task(operation)};
  // In a thread, since a store whose server is stopped answers never.
  auto answer = std::make_shared<std::promise<std::vector<std::string>>>();
  auto texts = answer->get_future();
  std::thread([notes, answer] {
    try {
      answer->set_value(notes.collect());
    } catch (...) {
      answer->set_exception(std::current_exception());
    }
  }).detach();
  std::string server = id.ranks.store_is_external ? "the launcher" : "rank 0";
  if (texts.wait_for(notes.moment + kAnswer) != std::future_status::ready) {
    forget_job_store(id.ranks);
    return {"The job's store does not answer: " + server + ", which serves it, is stuck.", ""};
  }
  try {
    auto known = texts.get();
    std::vector<int> missing;
    for (int rank = 0; rank < id.size; ++rank)
      if (known[rank].empty()) missing.push_back(rank);
    auto who = missing.empty() ? "Every rank waited: the connections between them broke."
                               : list_of_ranks(missing) + " did not come: ended, stuck, or calling something else.";
    return {who, all_ranks(std::move(known))};
  } catch (const c10::DistStoreError&) {
    forget_job_store(id.ranks);
    return {"The job's store does not answer: " + server + ", which serves it, is stuck.", ""};
  } catch (const std::exception&) {
    forget_job_store(id.ranks);
    return {"The job's store is gone: " + server + ", which served it, ended.", ""};
  }
}

}  // namespace

void Health::require_usable(const char* operation) const {
  if (closed_)
    throw MisuseError(std::string(operation) +
                      " was called after shutdown() of its process group. Create a new group, or " +
                      "shut it down later");
  if (!failure_.empty())
    throw CollectiveError(std::string(operation) +
                          " cannot run: this process group failed before and must be created again. " +
                          "The failure was: " + failure_);
}

void Health::fail(const Identity& id, Transport& transport, const char* operation, const std::exception& error,
                  steady_clock::time_point begin, const LinesOfRanks& all_ranks) {
  // Ranks that disagree all know it, none has run anything, and all go on from the same place.
  if (dynamic_cast<const MismatchError*>(&error)) throw;
  if (dynamic_cast<const CollectiveError*>(&error)) {
    failure_ = error.what();
    throw;
  }
  if (dynamic_cast<const Error*>(&error)) throw;
  auto waited = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
  auto reason = torch_messages::core(error.what());
  auto [missing, lines] = diagnose(id, transport, operation, all_ranks);
  auto detail = missing + (missing.empty() ? "" : " ") + "(" + reason + ")" + lines;
  if (torch_messages::is_timeout(reason) || waited >= id.timeout) {
    TimeoutError timed_out(id.rank, operation, waited, detail);
    failure_ = timed_out.what();
    throw timed_out;
  }
  failure_ = "rank " + std::to_string(id.rank) + ": " + operation + " failed after " +
             plain_number(waited.count() / 1000.0) + " s. " + detail;
  throw CollectiveError(failure_);
}

}  // namespace fabric::collectives
