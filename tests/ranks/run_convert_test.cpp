// `fabric convert`, `verify`, `inspect`, `consolidate` and `shard` are programs of their own: found beside `fabric`,
// given the arguments, and their end is the command's.
#include <cstdint>
#include <cstring>
#include <fstream>

#include <fabric/base/tree_io.h>

#include "tests/ranks/run_support.h"
#include "tests/support/catch.h"

using run_support::Folder;
using run_support::read_file;
using run_support::run;

namespace {

constexpr float kWeights[6] = {0, 0.5F, -1, 2, 1e-30F, 3e30F};

std::string weight_bytes() { return {reinterpret_cast<const char*>(kWeights), sizeof kWeights}; }

// A safetensors file: the length of the header, the header, the numbers.
void write_weights(const std::string& path) {
  const std::string header = R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";
  std::uint64_t length = header.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << header << weight_bytes();
}

void check_weights(const std::string& path) {
  auto bytes = read_file(path);
  std::uint64_t length = 0;
  REQUIRE(bytes.size() > sizeof length);
  std::memcpy(&length, bytes.data(), sizeof length);
  auto entry = fabric::read_json(bytes.substr(sizeof length, length)).at("w");
  CHECK(entry.at("dtype").as_string() == "F32");
  CHECK(entry.at("shape").as_list()[0].as_int() == 2);
  CHECK(entry.at("shape").as_list()[1].as_int() == 3);
  auto begin = static_cast<std::uint64_t>(entry.at("data_offsets").as_list()[0].as_int());
  CHECK(bytes.substr(sizeof length + length + begin, sizeof kWeights) == weight_bytes());
}

}  // namespace

TEST_CASE("fabric convert translates a checkpoint there and back", "[run]") {
  Folder folder;
  write_weights(folder / "a.safetensors");
  auto there = run({"convert", folder / "a.safetensors", folder / "b.pt"});
  INFO(there.out << there.error);
  CHECK(there.code == 0);
  CHECK(read_file(folder / "b.pt").starts_with("PK"));
  auto back = run({"convert", folder / "b.pt", folder / "c.safetensors"});
  INFO(back.out << back.error);
  CHECK(back.code == 0);
  check_weights(folder / "c.safetensors");
}

TEST_CASE("fabric shard, consolidate, verify and inspect work on a checkpoint", "[run]") {
  Folder folder;
  write_weights(folder / "a.safetensors");
  CHECK(run({"shard", folder / "a.safetensors", folder / "c", "-n", "2"}).code == 0);
  auto shown = run({"inspect", folder / "c"});
  CHECK(shown.out.find("[2, 3]") != std::string::npos);
  CHECK(shown.code == 0);
  CHECK(run({"consolidate", folder / "c", folder / "b.safetensors"}).code == 0);
  check_weights(folder / "b.safetensors");
  auto verified = run({"verify", folder / "b.safetensors"});
  CHECK(verified.code == 0);
  CHECK(verified.out.find("as they were written") != std::string::npos);
  CHECK(run({"verify", folder / "a.safetensors"}).code == 3);
  CHECK(run({"verify"}).code == 2);
  CHECK(run({"verify", folder / "none"}).code == 1);
}

TEST_CASE("what fabric convert refuses, the command refuses with the same code", "[run]") {
  Folder folder;
  auto usage = run({"convert", "x"});
  CHECK(usage.code == 2);
  CHECK(usage.said("two files are needed"));
  CHECK(run({"convert", folder / "none", folder / "o.pt"}).code == 1);
}
