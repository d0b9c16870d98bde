#include <fabric/data/collate.h>

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <torch/data/example.h>

#include "tests/support/catch.h"

namespace {

using at::Tensor;

Tensor filled(double value, std::vector<std::int64_t> shape = {2}) { return at::full(shape, value, at::kFloat); }

struct Pose {
  Tensor position, angle;
  int frame = 0;
  FABRIC_TENSORS(Pose, position, angle)
};
struct Word {
  std::string text;
  static std::string collate(std::vector<Word> words) {
    std::string all;
    for (auto& word : words) all += word.text;
    return all;
  }
};
struct Opaque {
  int number = 0;
};

}  // namespace

TEST_CASE("tensors are stacked along a new first dimension", "[data][collate]") {
  auto batch = fabric::collate(std::vector<Tensor>{filled(1), filled(2), filled(3)});
  CHECK(batch.sizes() == at::IntArrayRef{3, 2});
  CHECK(batch[2][1].item<float>() == 3);
}

TEST_CASE("numbers become tensors", "[data][collate]") {
  auto ints = fabric::collate(std::vector<int>{3, 4});
  CHECK(ints.scalar_type() == at::kLong);
  CHECK(ints[1].item<std::int64_t>() == 4);
  CHECK(fabric::collate(std::vector<float>{1.5f}).scalar_type() == at::kFloat);
  CHECK(fabric::collate(std::vector<double>{1.5}).scalar_type() == at::kDouble);
  auto bools = fabric::collate(std::vector<bool>{true, false, true});
  CHECK(bools.scalar_type() == at::kBool);
  CHECK(bools.sum().item<int>() == 2);
}

TEST_CASE("examples, pairs, tuples, arrays, lists and maps keep their form", "[data][collate]") {
  using torch::data::Example;
  auto example = fabric::collate(std::vector<Example<>>{{filled(1), filled(5, {})}, {filled(2), filled(6, {})}});
  static_assert(std::is_same_v<decltype(example), Example<>>);
  CHECK(example.data.sizes() == at::IntArrayRef{2, 2});
  CHECK(example.target[1].item<float>() == 6);

  auto labelled = fabric::collate(std::vector<Example<Tensor, int>>{{filled(1), 5}, {filled(2), 6}});
  CHECK(labelled.target.scalar_type() == at::kLong);

  auto unlabelled = fabric::collate(std::vector<Example<Tensor, void>>{{filled(1)}, {filled(2)}});
  CHECK(unlabelled.data.size(0) == 2);

  auto pair = fabric::collate(std::vector<std::pair<Tensor, std::string>>{{filled(1), "a"}, {filled(2), "b"}});
  CHECK(pair.first.size(0) == 2);
  CHECK(pair.second == std::vector<std::string>{"a", "b"});

  auto tuple = fabric::collate(std::vector<std::tuple<Tensor, int, double>>{{filled(1), 1, 0.5}, {filled(2), 2, 1.5}});
  CHECK(std::get<0>(tuple).size(0) == 2);
  CHECK(std::get<1>(tuple)[1].item<int>() == 2);
  CHECK(std::get<2>(tuple)[1].item<double>() == 1.5);

  auto array = fabric::collate(std::vector<std::array<int, 2>>{{1, 2}, {3, 4}});
  CHECK(array[1][0].item<int>() == 2);

  auto lists = fabric::collate(std::vector<std::vector<Tensor>>{{filled(1), filled(2)}, {filled(3), filled(4)}});
  REQUIRE(lists.size() == 2);
  CHECK(lists[1][0][0].item<float>() == 2);

  using Map = std::map<std::string, Tensor>;
  auto map =
      fabric::collate(std::vector<Map>{{{"x", filled(1)}, {"y", filled(2)}}, {{"x", filled(3)}, {"y", filled(4)}}});
  CHECK(map.at("y")[1][0].item<float>() == 4);
}

TEST_CASE("values are taken apart and put together", "[data][collate]") {
  auto sample = [](double x) {
    fabric::Value value;
    value["image"] = filled(x);
    value["label"] = static_cast<int>(x);
    value["names"] = fabric::Value::List{"n", x};
    return value;
  };
  auto batch = fabric::collate(std::vector<fabric::Value>{sample(1), sample(2)});
  CHECK(batch.at("image").as<Tensor>().sizes() == at::IntArrayRef{2, 2});
  CHECK(batch.at("label").as<Tensor>().scalar_type() == at::kLong);
  CHECK(batch.at("names").as_list()[0].as_list()[1].as_string() == "n");
  CHECK(batch.at("names").as_list()[1].as<Tensor>().scalar_type() == at::kDouble);
}

TEST_CASE("structs keep their type, with the listed tensors stacked", "[data][collate]") {
  Pose a{filled(1), filled(2, {3}), 7}, b{filled(3), filled(4, {3}), 8};
  auto batch = fabric::collate(std::vector<Pose>{a, b});
  static_assert(std::is_same_v<decltype(batch), Pose>);
  CHECK(batch.position.sizes() == at::IntArrayRef{2, 2});
  CHECK(batch.angle.sizes() == at::IntArrayRef{2, 3});
  CHECK(batch.angle[1][0].item<float>() == 4);
  CHECK(a.position.dim() == 1);
}

TEST_CASE("a type may collate itself, and unknown types stay a list", "[data][collate]") {
  CHECK(fabric::collate(std::vector<Word>{{"ab"}, {"c"}}) == "abc");
  auto opaque = fabric::collate(std::vector<Opaque>{{1}, {2}});
  static_assert(std::is_same_v<decltype(opaque), std::vector<Opaque>>);
  CHECK(opaque[1].number == 2);
}

TEST_CASE("samples that differ are an error that names the shapes", "[data][collate]") {
  CHECK_THROWS_WITH(fabric::collate(std::vector<Tensor>{filled(1), filled(1, {3})}),
                    Catch::Matchers::Contains("[2] and [3]") && Catch::Matchers::Contains("collate"));
  CHECK_THROWS_AS(fabric::collate(std::vector<Tensor>{filled(1), Tensor()}), fabric::Error);
  CHECK_THROWS_AS(fabric::collate(std::vector<std::vector<int>>{{1, 2}, {3}}), fabric::Error);
  using Map = std::map<std::string, int>;
  CHECK_THROWS_AS(fabric::collate(std::vector<Map>{{{"a", 1}}, {{"b", 1}}}), fabric::Error);
  CHECK_THROWS_AS(fabric::collate(std::vector<Map>{{{"a", 1}}, {{"a", 1}, {"b", 1}}}), fabric::Error);
  CHECK_THROWS_AS(fabric::collate(std::vector<Pose>{{filled(1), filled(1)}, {filled(1), Tensor()}}), fabric::Error);
  CHECK_THROWS_AS(fabric::collate(std::vector<fabric::Value>{1, "a"}), fabric::Error);
}
