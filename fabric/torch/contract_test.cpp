// What this library expects of LibTorch beside its documented interface: the texts of its errors and the protected
// members that fabric/torch/ uses. Run with each LibTorch that is supported, so that a change is seen before users see
// it.
#include <torch/torch.h>

#include <future>
#include <thread>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "fabric/torch/gloo_internal.h"
#include "fabric/torch/grad_reducer_internal.h"
#include "fabric/torch/messages_internal.h"
#include "fabric/torch/roomy_internal.h"
#include "tests/support/catch.h"

using namespace fabric;
using std::chrono::milliseconds;
using Tensors = std::vector<at::Tensor>;

namespace {

using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

// Two Gloo ranks in this process.
std::pair<BackendPtr, BackendPtr> two_ranks(milliseconds timeout) {
  auto store = c10::make_intrusive<c10d::HashStore>();
  auto other = std::async(std::launch::async, [&] { return torch_gloo::make(store, 1, 2, timeout, "127.0.0.1"); });
  auto mine = torch_gloo::make(store, 0, 2, timeout, "127.0.0.1");
  return {mine, other.get()};
}

template <class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const std::exception& error) {
    CHECK(torch_messages::is_communication(error));
    return error.what();
  }
  FAIL("nothing was thrown");
  return "";
}

struct BranchesImpl : torch::nn::Module {
  BranchesImpl() {
    used = register_module("used", torch::nn::Linear(3, 2));
    unused = register_module("unused", torch::nn::Linear(3, 2));
  }
  torch::nn::Linear used{nullptr}, unused{nullptr};
};
TORCH_MODULE(Branches);

struct ReducerOfOne {
  Branches net;
  Tensors params = net->parameters();
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  ReducerPtr reducer;
  explicit ReducerOfOne(ReducerOptions options) {
    auto store = c10::make_intrusive<c10d::HashStore>();
    group = c10::make_intrusive<c10d::ProcessGroup>(store, 0, 1);
    auto type = c10d::ProcessGroup::BackendType::GLOO;
    group->setBackend(c10::DeviceType::CPU, type, torch_gloo::make(store, 0, 1, milliseconds(5000), "127.0.0.1"));
    group->setDefaultBackend(type);
    std::vector<std::string> names;
    for (const auto& item : net->named_parameters()) names.push_back(item.key());
    options.bucket_bytes = options.first_bucket_bytes = 1 << 20;
    reducer = make_reducer(params, names, std::vector<bool>(params.size(), false), group, options);
  }
};

}  // namespace

TEST_CASE("a wait of Gloo that runs out of time says so", "[torch]") {
  auto [mine, other] = two_ranks(milliseconds(300));
  Tensors tensors{torch::ones({4})};
  auto text = message_of([&] { mine->allreduce(tensors)->wait(); });
  INFO(text);
  auto core = torch_messages::core(text);
  CHECK(torch_messages::is_timeout(core));
  CHECK(core.find('\n') == std::string::npos);
  CHECK(core.find(".cc:") == std::string::npos);
  CHECK(core.find("Exception raised from") == std::string::npos);
}

TEST_CASE("closed connections of Gloo end a wait of the other rank with an error of communication", "[torch]") {
  auto [mine, other] = two_ranks(milliseconds(20000));
  Tensors tensors{torch::ones({4})};
  auto work = mine->allreduce(tensors);
  CHECK(torch_gloo::is_busy(*mine));
  CHECK_FALSE(torch_gloo::is_busy(*other));
  torch_gloo::close_connections(*other);
  auto begin = std::chrono::steady_clock::now();
  auto text = message_of([&] { work->wait(); });
  INFO(text);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(15));
  CHECK_FALSE(torch_messages::is_timeout(torch_messages::core(text)));
}

TEST_CASE("gathers and reductions of pieces are exchanged between every two ranks of Gloo", "[torch]") {
  auto [mine, other] = two_ranks(milliseconds(20000));
  c10d::ReduceScatterOptions sum;
  sum.reduceOp = c10d::ReduceOp::SUM;
  for (auto type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kLong})
    for (std::int64_t count : {1, 1000, 300'000}) {
      auto first = torch::arange(count).remainder(50).to(type), second = first + 1;
      auto wholes = std::pair(torch::empty({2 * count}, type), torch::empty({2, count}, type));
      auto works = std::pair(mine->_allgather_base(wholes.first, first), other->_allgather_base(wholes.second, second));
      works.first->wait();
      works.second->wait();
      auto both = at::cat({first, second});
      CHECK((wholes.first.equal(both) && wholes.second.view({-1}).equal(both)));
      auto pieces = std::pair(torch::empty({count}, type), torch::empty({count}, type));
      works = {mine->_reduce_scatter_base(pieces.first, wholes.first, sum),
               other->_reduce_scatter_base(pieces.second, both, sum)};
      works.second->wait();
      works.first->wait();
      CHECK((pieces.first.equal(first * 2) && pieces.second.equal(second * 2)));
    }
  // One that does not come: the wait may be looked at in between, and ends with the connections.
  auto whole = torch::empty({8}), piece = torch::ones({4});
  auto work = mine->_allgather_base(whole, piece);
  CHECK_THROWS(work->wait(milliseconds(50)));
  CHECK_FALSE(work->isCompleted());
  CHECK(torch_gloo::is_busy(*mine));
  torch_gloo::close_connections(*other);
  message_of([&] { work->wait(); });
  CHECK_FALSE(torch_gloo::is_busy(*mine));
}

TEST_CASE("a store that is not served in time says so", "[torch]") {
  c10d::TCPStoreOptions options;
  options.isServer = true;
  options.waitWorkers = false;
  options.timeout = milliseconds(200);
  auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  auto text = message_of([&] { store->wait({"nobody sets this"}, milliseconds(200)); });
  INFO(text);
  CHECK(torch_messages::is_timeout(torch_messages::core(text)));
}

TEST_CASE("an allocation that fails is told from other errors", "[torch]") {
  auto lacks_memory = [](auto&& action) {
    try {
      action();
    } catch (const std::exception& error) {
      INFO(error.what());
      CHECK_FALSE(torch_messages::is_communication(error));
      return torch_messages::lacks_memory(error);
    }
    return false;
  };
  CHECK(lacks_memory([] { torch::empty({std::int64_t{1} << 60}, torch::kByte); }));
  CHECK_FALSE(lacks_memory([] { torch::ones({2}) + torch::ones({3}); }));
  CHECK_FALSE(lacks_memory([] { throw std::runtime_error("allocate memory"); }));
}

TEST_CASE("the Reducer names the parameters without a gradient by their indices", "[torch]") {
  ReducerOfOne one({});
  auto& reducer = *one.reducer;
  CHECK_FALSE(reducer.armed());
  CHECK_FALSE(reducer.unfinished());
  reducer.prepare_for_forward();
  auto loss = one.net->used(torch::ones({2, 3})).sum();
  reducer.prepare_for_backward({});
  CHECK(reducer.armed());
  loss.backward();
  CHECK(reducer.unfinished());
  std::string text;
  try {
    reducer.throw_if_unfinished();
  } catch (const c10::Error& error) {
    text = error.what_without_backtrace();
  }
  INFO(text);
  CHECK(torch_messages::indices_without_gradient(text) == std::vector<std::size_t>{2, 3});
}

TEST_CASE("the Reducer's protected members tell what it does", "[torch]") {
  ReducerOfOne one({.find_unused_parameters = true});  // give_logger: it would crash without
  auto& reducer = *one.reducer;
  auto backward = [&](bool reduced) {
    reducer.prepare_for_forward();
    auto loss = one.net->used(torch::ones({2, 3})).sum();
    if (reduced) reducer.prepare_for_backward({loss});
    loss.backward();
  };
  backward(true);
  CHECK_FALSE(reducer.unfinished());
  CHECK_FALSE(reducer.armed());
  CHECK_FALSE(reducer.took_unexpected_gradients());
  backward(false);
  CHECK(reducer.took_unexpected_gradients());
  reducer.forget_unexpected_gradients();
  CHECK_FALSE(reducer.took_unexpected_gradients());
  auto layout = reducer.bucket_layout();
  std::size_t count = 0;
  for (const auto& bucket : layout) count += bucket.size();
  CHECK(count == one.params.size());
  reducer.keep_layout();
  CHECK(reducer.has_final_layout());
}

TEST_CASE("room behind a class of LibTorch's is given back whole", "[torch]") {
  struct Base {
    virtual ~Base() = default;
    int number = 1;
  };
  std::unique_ptr<Base> made(new Roomy<Base>);
  std::memset(reinterpret_cast<char*>(made.get()) + sizeof(Roomy<Base>), 1, 4096);
  CHECK(made->number == 1);
}
