#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include <torch/torch.h>

#include <cmath>
#include <fstream>
#include <limits>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace fabric;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using checkpoint_test::same;

namespace {

Value round_trip(const Value& value, const std::string& format = "safetensors") {
  Folder folder;
  auto io = make_checkpoint_io(format);
  io->save(value, folder / "file");
  return io->load(folder / "file");
}

Value::Map plain_values() {
  double subnormal = std::numeric_limits<double>::denorm_min();
  return {{"null", Value()},
          {"yes", true},
          {"no", false},
          {"smallest", INT64_MIN},
          {"largest", INT64_MAX},
          {"third", 1.0 / 3},
          {"whole", 3.0},
          {"minus zero", -0.0},
          {"subnormal", subnormal},
          {"huge", 1.7976931348623157e308},
          {"nan", std::nan("")},
          {"inf", INFINITY},
          {"-inf", -INFINITY},
          {"text", "quote \" slash \\ newline \n bell \a zero " + std::string(1, '\0') + " é 漢 😀"},
          {"empty text", ""},
          {"list", Value::List{1, 2.5, "three", Value(), Value::List{}, Value::Map{}}},
          {"map", Value::Map{{"a.b", 1}, {"", 2}, {"ключ", 3}}}};
}

}  // namespace

TEST_CASE("plain values come back bit by bit", "[checkpoint_io]") {
  for (const auto& [key, value] : plain_values()) {
    INFO(key << " = " << to_string(value));
    CHECK(same(round_trip(value), value));
    CHECK(same(round_trip(Value::Map{{key, value}}), Value::Map{{key, value}}));
  }
  Value all = plain_values();
  CHECK(same(round_trip(all), all));
}

TEST_CASE("maps and strings that look like the format's own marks survive", "[checkpoint_io]") {
  Value value = Value::Map{{"a", Value::Map{{"$tensor", "x"}}},
                           {"b", Value::Map{{"$map", Value::Map{{"$map", 1}}}}},
                           {"c", Value::Map{{"$tensor", "x"}, {"$float", "nan"}}},
                           {"bytes", std::string("\xff\xfe\x00z", 4)},
                           {"overlong", "\xc0\x80"},
                           {"odd keys", Value::Map{{"\xff", 1}, {"fine", torch::ones(2)}}},
                           {"__metadata__", torch::ones(3)}};
  CHECK(same(round_trip(value), value));
  CHECK(same(round_trip(Value::Map{{"__metadata__", torch::ones(1)}}), Value::Map{{"__metadata__", torch::ones(1)}}));
}

TEST_CASE("every type of tensor comes back", "[checkpoint_io]") {
  for (auto type :
       {torch::kDouble, torch::kFloat, torch::kHalf, torch::kBFloat16, torch::kLong, torch::kInt, torch::kShort,
        torch::kChar, torch::kByte, torch::kBool, torch::kUInt16, torch::kUInt32, torch::kUInt64, torch::kFloat8_e4m3fn,
        torch::kFloat8_e5m2, torch::kComplexFloat, torch::kComplexDouble, torch::kComplexHalf}) {
    INFO(c10::toString(type));
    Value value = Value::Map{{"t", torch::randint(0, 2, {3, 5}).to(type)}, {"s", torch::ones({}).to(type)}};
    CHECK(same(round_trip(value), value));
  }
}

TEST_CASE("every layout of tensor comes back", "[checkpoint_io]") {
  auto base = torch::arange(24, torch::kFloat).view({2, 3, 4});
  Value value = Value::Map{{"transposed", base.transpose(0, 2)},
                           {"strided", base.slice(2, 0, 4, 2)},
                           {"expanded", torch::arange(3).expand({4, 3})},
                           {"scalar", torch::tensor(5)},
                           {"empty", torch::empty({0})},
                           {"empty with shape", torch::empty({3, 0, 2}, torch::kLong)},
                           {"undefined", torch::Tensor()},
                           {"parameter", torch::ones(3, torch::requires_grad())},
                           {"conjugate", torch::complex(torch::ones(2), torch::ones(2)).conj()},
                           {"tied 1", base},
                           {"tied 2", base}};
  Value loaded = round_trip(value);
  CHECK(same(loaded, value));
  CHECK_FALSE(loaded.at("parameter").as<torch::Tensor>().requires_grad());
  CHECK(same(round_trip(torch::ones(2)), torch::ones(2)));
}

TEST_CASE("names that collide once joined by dots stay apart", "[checkpoint_io]") {
  auto tensor = [](int i) { return torch::full({2}, i); };
  Value value = Value::Map{{"a.b", tensor(1)},
                           {"a", Value::Map{{"b", tensor(2)}}},
                           {"a.b~1", tensor(3)},
                           {"", Value::Map{{"a.b", tensor(4)}}},
                           {"l", Value::List{tensor(5)}},
                           {"l.0", tensor(6)}};
  CHECK(same(round_trip(value), value));
}

TEST_CASE("tensors of a mapped file are aligned, writable and leave the file alone", "[checkpoint_io]") {
  Folder folder;
  auto io = make_checkpoint_io();
  io->save(Value::Map{{"odd", torch::ones(3, torch::kByte)},
                      {"big", torch::ones({64, 64})},
                      {"double", torch::ones(5, torch::kDouble)},
                      {"half", torch::ones(7, torch::kHalf)}},
           folder / "f");
  auto before = read_file(folder / "f");
  Value loaded = io->load(folder / "f");
  auto address = [&](const char* name) {
    return reinterpret_cast<std::uintptr_t>(loaded.at(name).as<torch::Tensor>().data_ptr());
  };
  CHECK(address("big") % 64 == 0);
  CHECK(address("double") % 8 == 0);
  CHECK(address("half") % 2 == 0);
  loaded.at("big").as<torch::Tensor>().zero_();
  CHECK(read_file(folder / "f") == before);
  io->save(loaded, folder / "f");  // onto the very file it is mapped from
  CHECK(same(io->load(folder / "f"), loaded));
}

TEST_CASE("tensors that no file can hold are refused by name", "[checkpoint_io]") {
  Folder folder;
  auto save = [&](torch::Tensor tensor) {
    make_checkpoint_io()->save(Value::Map{{"m", Value::Map{{"w", tensor}}}}, folder / "f");
  };
  CHECK_THROWS_WITH(save(torch::empty({2}, torch::device(torch::kMeta))), Catch::Matchers::Contains("'m.w'"));
  CHECK_THROWS_AS(save(torch::eye(3).to_sparse()), CheckpointError);
  CHECK_THROWS_AS(save(torch::quantize_per_tensor(torch::ones(3), 0.1, 0, torch::kQInt8)), CheckpointError);
  Value deep = 1;
  for (int i = 0; i < 300; ++i) deep = Value::List{deep};
  CHECK_THROWS_AS(make_checkpoint_io()->save(deep, folder / "f"), CheckpointError);
  CHECK(folder.names().empty());
}

TEST_CASE("tensors without memory are made whole or refused by name", "[checkpoint_io]") {
  Folder folder;
  auto freed = torch::ones({8}), shrunk = torch::ones({8});
  freed.storage().unsafeGetStorageImpl()->reset();
  shrunk.storage().unsafeGetStorageImpl()->set_nbytes(4);
  for (const char* format : {"safetensors", "torch"}) {
    INFO(format);
    auto io = make_checkpoint_io(format);
    auto save = [&](const torch::Tensor& tensor) {
      io->save(Value::Map{{"m", Value::Map{{"w", tensor}}}}, folder / "f");
      return io->load(folder / "f").at("m").at("w").as<torch::Tensor>();
    };
    CHECK(torch::equal(save(at::_efficientzerotensor({3, 2}, torch::kDouble)), torch::zeros({3, 2}, torch::kDouble)));
    CHECK_THROWS_WITH(save(freed), Catch::Matchers::Contains("'m.w'") && Catch::Matchers::Contains("memory was freed"));
    CHECK_THROWS_WITH(save(shrunk), Catch::Matchers::Contains("'m.w'") && Catch::Matchers::Contains("smaller"));
    CHECK_NOTHROW(save(freed.narrow(0, 0, 0)));
    auto job = io->async().start(Value(freed), [](const Value&) {});
    CHECK_NOTHROW(job->wait());
  }
}

TEST_CASE("remove takes files, folders and what is not there", "[checkpoint_io]") {
  Folder folder;
  auto io = make_checkpoint_io();
  io->save(1, folder / "a/b/c");
  io->remove(folder / "a/b/c");
  CHECK_FALSE(std::filesystem::exists(folder / "a/b/c"));
  io->remove(folder / "a");
  CHECK(folder.names().empty());
  CHECK_NOTHROW(io->remove(folder / "a"));
  CHECK_THROWS_AS(io->remove(""), MisuseError);
  CHECK_THROWS_AS(io->remove("/"), MisuseError);
}

TEST_CASE("a file that is missing, a folder or of another kind says so", "[checkpoint_io]") {
  Folder folder;
  auto io = make_checkpoint_io();
  CHECK_THROWS_WITH(io->load(folder / "none"),
                    Catch::Matchers::Contains("none") && Catch::Matchers::Contains("No such file"));
  CHECK_THROWS_WITH(io->load(folder.path()), Catch::Matchers::Contains("folder"));
  for (std::string content : {"", "x", "hello, this is no checkpoint"}) {
    std::ofstream(folder / "text") << content;
    CHECK_THROWS_AS(io->load(folder / "text"), CheckpointCorrupt);
  }
  CHECK_THROWS_WITH(make_checkpoint_io("safetensor"), Catch::Matchers::Contains("did you mean 'safetensors'"));
}
