#include <fabric/plugins/checkpoint_io/async_writer.h>

#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/async/host_snapshot.h"
#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using checkpoint_test::same;
using fabric::AsyncWriter;
using fabric::CheckpointError;
using fabric::HostSnapshot;
using fabric::Value;

TEST_CASE("a snapshot is equal, apart, and uses its memory again", "[checkpoint][snapshot]") {
  auto big = torch::randn({300, 50});
  auto halves = torch::randn({64, 6}).to(torch::kHalf);
  Value value = Value::Map{{"big", big},
                           {"view", big.t()},
                           {"part", big.slice(1, 3, 9)},
                           {"bytes", torch::randint(256, {70'000}, torch::kByte).slice(0, 3, 69'998)},
                           {"list", Value::List{halves, 3, torch::tensor(2.5)}},
                           {"empty", torch::empty({0, 4})},
                           {"undefined", at::Tensor()},
                           {"complex", torch::randn({4}, torch::kComplexFloat).conj()},
                           {"grad", torch::ones({3}, torch::requires_grad())}};
  HostSnapshot snapshot;
  auto copy = snapshot.take(value);
  CHECK(same(copy, value));
  CHECK_FALSE(copy.at("grad").as<at::Tensor>().requires_grad());
  auto* memory = copy.at("big").as<at::Tensor>().const_data_ptr();
  CHECK(memory != big.const_data_ptr());
  auto bytes = snapshot.bytes();
  CHECK(bytes >= big.nbytes() * 2);
  auto before = big.clone();
  big.add_(1);
  CHECK(torch::equal(copy.at("big").as<at::Tensor>(), before));
  copy = snapshot.take(value);
  CHECK(same(copy, value));
  CHECK(copy.at("big").as<at::Tensor>().const_data_ptr() == memory);
  CHECK(snapshot.bytes() == bytes);

  Value other = Value::Map{{"big", torch::zeros({2}, torch::kLong)}};
  CHECK(same(snapshot.take(other), other));
  CHECK(snapshot.bytes() == 16);
  Value odd = Value::Map{{"meta", torch::empty({2}, torch::kMeta)}, {"sparse", torch::eye(3).to_sparse()}};
  CHECK(snapshot.take(odd).at("sparse").as<at::Tensor>().is_sparse());
}

TEST_CASE("what nobody changes any more is not copied", "[checkpoint][snapshot]") {
  auto kept = torch::ones({3}), copied = torch::ones({3});
  HostSnapshot snapshot;
  auto out = snapshot.take(Value::List{kept, copied}, {kept.unsafeGetTensorImpl()}).as_list();
  CHECK(out[0].as<at::Tensor>().const_data_ptr() == kept.const_data_ptr());
  CHECK(out[1].as<at::Tensor>().const_data_ptr() != copied.const_data_ptr());
}

TEST_CASE("what stays as it is for a while is copied later, and noticed when it does not", "[checkpoint][snapshot]") {
  auto weight = torch::ones({3, 2}), moment = torch::full({4}, 2.0), buffer = torch::full({2}, 3.0);
  Value value = Value::List{weight, moment.detach(), buffer, weight.slice(0, 1, 2)};
  const std::unordered_set<const void*> unchanging{weight.storage().unsafeGetStorageImpl(),
                                                   moment.storage().unsafeGetStorageImpl()};
  HostSnapshot snapshot;
  auto copy = snapshot.take(value, {}, unchanging);
  CHECK(snapshot.has_more());
  buffer.zero_();
  CHECK(snapshot.take_rest() == 0);
  CHECK_FALSE(snapshot.has_more());
  CHECK(same(copy, Value(Value::List{weight, moment, torch::full({2}, 3.0), weight.slice(0, 1, 2)})));
  snapshot.take(value, {}, unchanging);
  weight.add_(1);
  CHECK(snapshot.take_rest() == 2);  // the view as well

  AsyncWriter writer;
  for (int i = 0; i < 50; ++i) {
    writer.await_copy();
    weight.fill_(i);
    double seen = -1;
    auto job =
        writer.start(Value(weight), [&](const Value& kept) { seen = kept.as<at::Tensor>().mean().item<double>(); },
                     {.unchanging = unchanging});
    writer.await_copy();
    weight.fill_(-2);
    job->wait();
    CHECK(seen == i);
  }
}

TEST_CASE("one job after another, each with the content of its start, failures with their job", "[checkpoint][async]") {
  AsyncWriter writer;
  std::atomic<bool> go = false;
  std::atomic<double> seen = 0;
  auto weight = torch::full({100}, 1.0);
  auto first = writer.start(Value(weight), [&](const Value& copy) {
    while (!go) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    seen = copy.as<at::Tensor>().mean().item<double>();
    throw CheckpointError("no");
  });
  CHECK_FALSE(first->ended());
  weight.fill_(2);
  go = true;
  auto second =
      writer.start(Value(weight), [&](const Value& copy) { seen = copy.as<at::Tensor>().mean().item<double>(); });
  CHECK(first->ended());
  CHECK_THROWS_AS(first->wait(), CheckpointError);
  CHECK_NOTHROW(first->wait());
  second->wait();
  CHECK(seen == 2);
  {
    auto dropped = writer.start(Value(1), [](const Value&) { throw std::runtime_error("logged"); });
  }
  {
    auto dropped = writer.start(Value(1), [](const Value&) { throw 3; });
    dropped->settle();
  }
  writer.finish();
  go = false;
  writer.start(Value(1), [&](const Value&) { go = true; });
  writer.finish();
  CHECK(go);
}
