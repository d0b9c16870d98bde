#include <fabric/state/rename.h>

#include <ATen/ops/full.h>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using namespace fabric;
using Catch::Matchers::Contains;

namespace {

at::Tensor number(double n) { return at::full({1}, n); }
double number_at(const Value& value) { return value.as<at::Tensor>().item<double>(); }

RenamedValue renamed(Value value, const RenameRules& rules) {
  Renamer rename(rules);
  return rename_tensors(std::move(value), rename);
}

template <class Error>
std::string failure(Value value, const RenameRules& rules) {
  try {
    renamed(std::move(value), rules);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("rules rename one after another, each what those before it made", "[rename]") {
  Renamer rename({{"^encoder\\.(.*)", "backbone.$1"}, {"gamma$", "weight"}, {"^backbone\\.0\\.", "backbone.first."}});
  CHECK(rename("encoder.0.gamma") == "backbone.first.weight");
  CHECK(rename("head.bias") == "head.bias");
  CHECK(rename.unused().empty());
  CHECK(Renamer({{"a", "b"}, {"c", "d"}})("a.a") == "b.b");
  Renamer one({{"^x", "y"}, {"^a", "b"}});
  one("a");
  CHECK(one.unused() == std::vector<std::string>{"^x"});
}

TEST_CASE("a pattern or a name that cannot be searched is an error that shows it", "[rename]") {
  CHECK_THROWS_WITH(Renamer(RenameRules{{"^(encoder", "x"}}), Contains("'^(encoder'"));
  CHECK_THROWS_AS(Renamer(RenameRules{{"[", ""}}), ConfigError);
  Renamer all(RenameRules{{".*", ""}}), doubles(RenameRules(12, {"(.+)", "$1$1"}));
  CHECK_THROWS_AS(all("weight"), CheckpointKeyError);
  CHECK_THROWS_WITH(doubles("weight"), Contains("too long"));
  CHECK_THROWS_WITH(all(std::string(2000, 'a')), Contains("too long") && Contains("2000"));
}

TEST_CASE("tensors are renamed, and all else stays where it is", "[rename]") {
  Value tree = Value::Map{{"model", Value::Map{{"encoder.w", number(1)}, {"head.w", number(2)}}},
                          {"encoder", 3},
                          {"rates", Value::List{0.5, number(4)}}};
  auto out = renamed(tree, {{"encoder", "backbone"}});
  CHECK(number_at(out.value.at("model").at("backbone.w")) == 1);
  CHECK(number_at(out.value.at("model").at("head.w")) == 2);
  CHECK(out.value.at("model").as_map().begin()->first == "backbone.w");
  CHECK(out.value.at("encoder").as_int() == 3);
  CHECK(out.originals == std::unordered_map<std::string, std::string>{{"model.backbone.w", "model.encoder.w"}});
  CHECK_THAT(failure<CheckpointKeyError>(tree, {{"^rates", "speeds"}}), Contains("'rates.1'") && Contains("list"));
}

TEST_CASE("a renamed tensor stays as many maps deep as it was", "[rename]") {
  Value tree = Value::Map{{"state_dict", Value::Map{{"net.w", number(1)}, {"net.b", number(2)}}}, {"epoch", 3}};
  auto moved = renamed(tree, {{"^state_dict\\.net\\.", "model."}}).value;
  CHECK_FALSE(moved.find("state_dict"));
  CHECK(number_at(moved.at("model").at("w")) == 1);
  CHECK(number_at(moved.at("model").at("b")) == 2);
  CHECK(moved.at("epoch").as_int() == 3);
  // Into a map that is there; out of all maps where the name has no dot left.
  Value two = Value::Map{{"a", Value::Map{{"x", number(1)}}}, {"b", Value::Map{{"y", number(2)}}}};
  CHECK(number_at(renamed(two, {{"^a\\.", "b."}}).value.at("b").at("x")) == 1);
  CHECK(number_at(renamed(two, {{"^a\\.", ""}}).value.at("x")) == 1);
}

TEST_CASE("two names that become one are an error with both", "[rename]") {
  Value tree = Value::Map{{"a.w", number(1)}, {"b.w", number(2)}, {"c", 1}};
  CHECK_THAT(failure<CheckpointKeyError>(tree, {{"^[ab]", "x"}}), Contains("'a.w' and 'b.w' are both 'x.w'"));
  CHECK_THAT(failure<CheckpointKeyError>(tree, {{"^a", "b"}}), Contains("'a.w'") && Contains("'b.w'"));
  CHECK_THAT(failure<CheckpointKeyError>(tree, {{"^b", "a"}}), Contains("'a.w'") && Contains("'b.w'"));
  CHECK_THAT(failure<CheckpointKeyError>(tree, {{"a\\.w", "c"}}), Contains("'a.w'") && Contains("'c'"));
  // A swap goes by way of a third name.
  auto swapped = renamed(tree, {{"^a", "~"}, {"^b", "a"}, {"^~", "b"}}).value;
  CHECK(number_at(swapped.at("b.w")) == 1);
  CHECK(number_at(swapped.at("a.w")) == 2);
}

TEST_CASE("errors have the original name beside a renamed one", "[rename]") {
  const std::unordered_map<std::string, std::string> originals{{"model.new", "model.old"}};
  CHECK(with_original_names("it's wrong: missing 'x', unexpected 'new' and 'n'", "model.", originals) ==
        "it's wrong: missing 'x', unexpected 'new' ('model.old' in the checkpoint) and 'n'");
  CHECK(with_original_names("nothing in quotes", "model.", originals) == "nothing in quotes");
}
