#include "plugins/collectives/waits/wait_board.h"

#include <pthread.h>

#include <algorithm>
#include <cstdlib>

#include <thread>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "launcher/os/signal_mask.h"
#include "plugins/collectives/store/store_client.h"
#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::string encode_place(const WaitingPlace& place) {
  std::string bytes;
  wire::Writer writer(bytes);
  writer.number(place.version);
  writer.byte(place.waits);
  writer.byte(place.in_check);
  writer.text(place.lane);
  writer.number(place.number);
  writer.text(place.operation);
  writer.number(place.bytes);
  writer.text(place.what);
  writer.number(static_cast<std::int64_t>(place.begun.size()));
  for (const auto& [lane, count] : place.begun) {
    writer.text(lane);
    writer.number(count);
  }
  writer.finish();
  return bytes;
}

// A store whose server is stuck answers never, and whoever waits must not wait for it beyond the wait's own end.
class BriefCalls {
 public:
  explicit BriefCalls(c10d::Store& store) : store_(store), before_(store.getTimeout()) {
    constexpr milliseconds kMost{3000};
    store_.setTimeout(std::min(before_, kMost));
  }
  ~BriefCalls() { store_.setTimeout(before_); }
  BriefCalls(const BriefCalls&) = delete;
  BriefCalls& operator=(const BriefCalls&) = delete;

 private:
  c10d::Store& store_;
  milliseconds before_;
};

WaitingPlace decode_place(const std::vector<std::uint8_t>& bytes) {
  WaitingPlace place;
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  wire::Reader reader(text.substr(std::min(text.size(), wire::kSizeBytes)));
  place.version = reader.number();
  place.waits = reader.byte() != 0;
  place.in_check = reader.byte() != 0;
  place.lane = reader.text();
  place.number = reader.number();
  place.operation = reader.text();
  place.bytes = reader.number();
  place.what = reader.text();
  auto lanes = reader.number();
  for (std::int64_t i = 0; i < lanes && reader.good(); ++i) {
    auto lane = reader.text();
    place.begun[lane] = reader.number();
  }
  return reader.good() ? place : WaitingPlace{};
}

}  // namespace

/// The thread that answers. It waits for a question on a connection of its own, which costs nothing while none comes.
struct WaitBoard::Answering {
  c10::intrusive_ptr<c10d::PrefixStore> store;
  c10::intrusive_ptr<StoreClient> connection;
  std::string own_key;
  std::atomic<bool> ended{false};

  void run() {
    pthread_setname_np(pthread_self(), "fabric_answers");
    // Longer than any job: a wait that ended sooner would be taken for the end of the store.
    constexpr std::chrono::hours kLong{24 * 365 * 20};
    try {
      for (std::int64_t number = 1; !ended.load(); ++number) {
        store->wait({"ask/" + std::to_string(number)}, kLong);
        auto text = std::to_string(number) + " " + Activity::of_process().in_words();
        store->set(own_key, std::vector<std::uint8_t>(text.begin(), text.end()));
      }
    } catch (const std::exception&) {
      // The job ends: the store is gone, or this process leaves it.
    }
  }
};

WaitBoard::WaitBoard(c10::intrusive_ptr<c10d::Store> store, int rank, int size, bool answers)
    : store_(c10::make_intrusive<c10d::PrefixStore>("waits", std::move(store))), rank_(rank), size_(size) {
  auto mine = encode_place({});
  store_->multiSet({"at/" + std::to_string(rank), "now/" + std::to_string(rank)},
                   {std::vector<std::uint8_t>(mine.begin(), mine.end()), {'0'}});
  auto* prefix = dynamic_cast<c10d::PrefixStore*>(store_.get());
  client_ = prefix ? dynamic_cast<StoreClient*>(prefix->getUnderlyingNonPrefixStore().get()) : nullptr;
  // Two connections for each rank: beyond that many ranks rank 0 would need too many descriptors.
  constexpr int kMostAnswering = 256;
  if (!answers || !client_ || size > kMostAnswering) return;
  answering_ = std::make_shared<Answering>();
  auto cloned = store_->clone();
  answering_->store = c10::dynamic_intrusive_pointer_cast<c10d::PrefixStore>(cloned);
  if (!answering_->store) {
    answering_.reset();
    return;
  }
  answering_->connection =
      c10::dynamic_intrusive_pointer_cast<StoreClient>(answering_->store->getUnderlyingNonPrefixStore());
  answering_->own_key = "now/" + std::to_string(rank);
  BlockSignals blocked;
  std::thread([answering = answering_] { answering->run(); }).detach();
}

WaitBoard::~WaitBoard() {
  if (!answering_) return;
  answering_->ended.store(true);
  if (answering_->connection) answering_->connection->interrupt();
}

std::shared_ptr<Lane> WaitBoard::add_lane(const std::string& name, std::vector<int> members, Group* group) {
  auto made = std::make_shared<Lane>(Lane{name, std::move(members), group});
  std::erase_if(lanes_, [](const auto& known) { return known.expired(); });
  lanes_.push_back(made);
  return made;
}

Lane* WaitBoard::lane(const std::string& name) const {
  for (const auto& known : lanes_)
    if (auto each = known.lock(); each && each->name == name) return each.get();
  return nullptr;
}

std::vector<std::string> WaitBoard::keys(const char* kind) const {
  std::vector<std::string> all;
  for (int rank = 0; rank < size_; ++rank) all.push_back(kind + std::to_string(rank));
  return all;
}

void WaitBoard::publish(WaitingPlace place) {
  place.version = ++version_;
  for (const auto& known : lanes_)
    if (auto each = known.lock()) place.begun[each->name] = each->begun;
  auto bytes = encode_place(place);
  BriefCalls brief(*store_);
  store_->set("at/" + std::to_string(rank_), std::vector<std::uint8_t>(bytes.begin(), bytes.end()));
}

std::vector<WaitingPlace> WaitBoard::places() {
  std::vector<WaitingPlace> all;
  BriefCalls brief(*store_);
  for (const auto& bytes : store_->multiGet(keys("at/"))) all.push_back(decode_place(bytes));
  return all;
}

std::vector<int> WaitBoard::absent_ranks() {
  if (!client_) return {};
  BriefCalls brief(*client_);
  return client_->absent_ranks();
}

std::vector<std::string> WaitBoard::ask(milliseconds timeout) {
  BriefCalls brief(*store_);
  auto number = store_->add("questions", 1);
  auto begin = std::to_string(number) + " ";
  store_->set("ask/" + std::to_string(number), std::vector<std::uint8_t>{'?'});
  auto until = steady_clock::now() + timeout;
  std::vector<std::string> answers(static_cast<std::size_t>(size_));
  while (true) {
    bool complete = true;
    auto values = store_->multiGet(keys("now/"));
    for (int rank = 0; rank < size_; ++rank) {
      std::string text(values[rank].begin(), values[rank].end());
      // An answer to a later question will do.
      bool is_new = std::atoll(text.c_str()) >= number;
      if (is_new) answers[rank] = text.substr(text.find(' ') + 1);
      complete = complete && (is_new || rank == rank_);
    }
    if (complete || steady_clock::now() >= until) break;
    std::this_thread::sleep_for(milliseconds(20));
  }
  answers[rank_] = Activity::of_process().in_words();
  return answers;
}

}  // namespace fabric::collectives
