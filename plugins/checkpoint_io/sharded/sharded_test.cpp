// A checkpoint as a folder of shards. Ranks are played one after another here: writing and committing need no group.
#include <torch/torch.h>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/read_options.h>

#include "plugins/checkpoint_io/sharded/sharded_index.h"
#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/test_files.h"
#include "plugins/checkpoint_io/tools/tools.h"
#include "tests/support/catch.h"

using namespace checkpoint_test;
using Catch::Matchers::Contains;
using fabric::CheckpointCorrupt;
using fabric::CheckpointError;
using fabric::Shard;
using fabric::StatePart;
using fabric::Value;

namespace {

namespace fs = std::filesystem;

at::Tensor rows() { return torch::arange(35, torch::kFloat).reshape({7, 5}); }
at::Tensor waves() { return torch::complex(torch::arange(6.0), -torch::arange(6.0)); }

/// The part of one of `of` ranks: `weight` by rows, `waves` by elements, all else whole; `own` is each rank's.
StatePart part_of(int rank, int of) {
  auto begin = 7 * rank / of, end = 7 * (rank + 1) / of;
  auto first = 6 * rank / of, last = 6 * (rank + 1) / of;
  StatePart part;
  part.values = Value::Map{{"model", Value::Map{{"weight", rows().slice(0, begin, end).clone()},
                                                {"bias", torch::full({3}, 2.5, torch::kBFloat16)},
                                                {"flags", torch::tensor({true, false})},
                                                {"none", at::Tensor()},
                                                {"empty", torch::empty({0, 4})},
                                                {"scalar", torch::tensor(std::int64_t{7})},
                                                {"waves", waves().slice(0, first, last).clone()}}},
                           {"names", Value::List{"a", 2, 0.5}},
                           {"own", Value::Map{{"seen", rank}, {"state", torch::full({2}, rank)}}}};
  part.shards = {{"model.weight", {{7, 5}, {begin, 0}}}, {"model.waves", {{6}, {first}}}};
  part.per_rank = {"own"};
  return part;
}

void write(const fs::path& path, int of, fabric::PartWriter& writer) {
  auto place = writer.begin(path);
  std::vector<Value> parts;
  for (int rank = 0; rank < of; ++rank) parts.push_back(writer.write(place, part_of(rank, of), rank, of));
  writer.commit(place, path, parts);
}
void write(const fs::path& path, int of) { write(path, of, *fabric::checkpoint::make_shard_writer()); }

Value whole(int of) {
  auto value = part_of(0, of).values;
  value["model"]["weight"] = rows();
  value["model"]["waves"] = waves();
  Value::List own;
  for (int rank = 0; rank < of; ++rank) own.push_back(part_of(rank, of).values.at("own"));
  value["own"] = of == 1 ? own[0] : Value(Value::Map{{"per_rank", own}});
  return value;
}

std::vector<std::string> sorted_names(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("what any number of ranks wrote reads as one checkpoint, by every reader", "[checkpoint][sharded]") {
  Folder folder;
  for (int of : {1, 2, 3, 5}) {
    INFO(of << " ranks");
    const auto path = folder / ("c" + std::to_string(of));
    write(path, of);
    for (const char* format : {"sharded", "safetensors", "torch"})
      CHECK(same(fabric::make_checkpoint_io(format)->load(path), whole(of)));
    auto opened = fabric::make_checkpoint_io("sharded")->open(path);
    auto weight = opened.at("model").at("weight").as<at::Tensor>();
    CHECK((weight.is_meta() && weight.sizes() == at::IntArrayRef({7, 5})));
    for (std::int64_t begin : {0, 2, 6}) {  // boxes that lie across shards
      auto box = torch::zeros({std::min<std::int64_t>(3, 7 - begin), 2}, torch::kDouble);
      fabric::read_box(weight, {begin, 2}, box);
      CHECK(torch::equal(box, rows().slice(0, begin, begin + box.size(0)).slice(1, 2, 4).to(torch::kDouble)));
    }
    auto some = torch::zeros({3}, torch::kComplexFloat);
    fabric::read_box(opened.at("model").at("waves").as<at::Tensor>(), {2}, some);
    CHECK(torch::equal(some, waves().slice(0, 2, 5)));
    // Each shard is a file for itself, with the names of the model.
    auto shard =
        fabric::make_checkpoint_io()->load(path / ("shard-00000-of-0000" + std::to_string(of) + ".safetensors"));
    CHECK(shard.at("rank").as_int() == 0);
  }
  auto io = fabric::make_checkpoint_io("sharded");
  io->save(whole(1), folder / "alone");
  CHECK(same(io->load(folder / "alone"), whole(1)));
  CHECK(sorted_names(folder.path()) == std::vector<std::string>{"alone", "c1", "c2", "c3", "c5"});
}

TEST_CASE("a reader of another kind, by the page on formats, finds the same bytes", "[checkpoint][sharded]") {
  Folder folder;
  write(folder / "c", 3);
  if (std::system("python3 -c '' 2> /dev/null") != 0) {
    WARN("skipped: there is no python3");
    return;
  }
  auto command = "python3 " FABRIC_SOURCE_ROOT "/tests/parity/read_sharded.py '" + (folder / "c").string() + "' > '" +
                 (folder / "out").string() + "'";
  REQUIRE(std::system(command.c_str()) == 0);
  auto text = read_file(folder / "out");
  auto sum = [](const at::Tensor& tensor) {
    return std::to_string(tensor.contiguous().view(torch::kByte).to(torch::kLong).sum().item<std::int64_t>());
  };
  CHECK_THAT(text, Contains("model.weight F32 [7, 5] " + sum(rows()) + "\n"));
  CHECK_THAT(text, Contains("model.waves F32 [6, 2] " + sum(torch::view_as_real(waves())) + "\n"));
  CHECK_THAT(text, Contains("model.bias BF16 [3] " + sum(torch::full({3}, 2.5, torch::kBFloat16)) + "\n"));
  CHECK_THAT(text, Contains("model.empty F32 [0, 4] 0\n"));
  CHECK_THAT(text, Contains("own.per_rank.2.state"));
  // It compares the same sums: of tensors, headers and the index.
  for (const char* name : {"shard-00001-of-00003.safetensors", "index.json"}) {
    const auto good = read_file(folder / "c" / name);
    for (std::size_t back : {std::size_t{1}, good.size() / 2}) {
      auto bad = good;
      bad[good.size() - back] = static_cast<char>(bad[good.size() - back] ^ 1);
      write_file(folder / "c" / name, bad);
      CHECK(std::system((command + " 2> /dev/null").c_str()) != 0);
    }
    write_file(folder / "c" / name, good);
  }
}

TEST_CASE("a large tensor of a folder comes without a copy, and is its holder's alone", "[checkpoint][sharded]") {
  Folder folder;
  const auto path = folder / "c";
  const Value value =
      Value::Map{{"w", torch::randn({1 << 19})}, {"waves", torch::randn({1 << 17}, torch::kComplexFloat)}};
  auto io = fabric::make_checkpoint_io("sharded");
  io->save(value, path);
  auto opened = io->open(path);
  auto first = fabric::in_memory(opened), second = fabric::in_memory(opened);
  CHECK((same(first, value) && same(second, value)));
  for (const char* name : {"w", "waves"}) first.at(name).as<at::Tensor>().zero_();
  CHECK((same(second, value) && same(fabric::in_memory(opened), value) && same(io->load(path), value)));
  opened = {};
  io->save(Value::Map{{"w", torch::zeros({1 << 19})}}, path);
  CHECK(same(second, value));

  const auto shard = path / "shard-00000-of-00001.safetensors";
  auto bytes = read_file(shard);
  bytes[bytes.size() - 5] = static_cast<char>(bytes[bytes.size() - 5] ^ 8);
  write_file(shard, bytes);
  CHECK_THROWS_WITH(io->load(path), Contains("'w' is damaged"));
  CHECK_NOTHROW(fabric::make_checkpoint_io("sharded", {.verify = false})->load(path));
}

TEST_CASE("a rank's boxes of a tensor have names of their own in its file", "[checkpoint][sharded]") {
  Folder folder;
  const auto path = folder / "c";
  auto writer = fabric::checkpoint::make_shard_writer();
  const auto place = writer->begin(path);
  std::vector<Value> parts;
  for (int rank = 0; rank < 2; ++rank) {
    // Rows 0, 1 and 4 to 6, or 2 and 3; "w#1" is the name of another tensor.
    fabric::Shard shard{{7, 5}, {}};
    if (rank == 0) shard.boxes = {{{0, 0}, {0, 0}, {2, 5}}, {{2, 0}, {4, 0}, {3, 5}}};
    if (rank == 1) shard.boxes = {{{0, 0}, {2, 0}, {2, 5}}};
    auto own = rank == 0 ? torch::cat({rows().slice(0, 0, 2), rows().slice(0, 4)}) : rows().slice(0, 2, 4);
    StatePart part{Value::Map{{"w", own}, {"w#1", torch::ones({2})}}, {{"w", shard}}};
    parts.push_back(writer->write(place, part, rank, 2));
  }
  writer->commit(place, path, parts);
  auto io = fabric::make_checkpoint_io();
  CHECK(same(io->load(path), Value(Value::Map{{"w", rows()}, {"w#1", torch::ones({2})}})));
  auto first = io->load(path / "shard-00000-of-00002.safetensors").at("tensors").as_list();
  CHECK(first.size() == 2 + (parts[0].at("sums").as_string().size() == 3 * sizeof(std::uint32_t)));
  CHECK_THAT(read_file(path / "index.json"), Contains("\"version\":3") && Contains("\"w#1#\"]"));
  CHECK(fabric::checkpoint::verify_checkpoint(path).faults.empty());
  if (std::system("python3 -c '' 2> /dev/null") != 0) return;
  auto command = "python3 " FABRIC_SOURCE_ROOT "/tests/parity/read_sharded.py '" + path.string() + "' > '" +
                 (folder / "out").string() + "'";
  REQUIRE(std::system(command.c_str()) == 0);
  const auto sum = rows().contiguous().view(torch::kByte).to(torch::kLong).sum().item<std::int64_t>();
  CHECK_THAT(read_file(folder / "out"), Contains("w F32 [7, 5] " + std::to_string(sum) + "\n"));
  // The part that a name leads to must be there, and of the right size.
  auto index = read_file(path / "index.json");
  for (const char* other : {"w#2#", "w", "w#1"}) {
    auto bad = index;
    bad.replace(bad.find("w#1#"), 4, other);
    write_file(path / "index.json", bad);
    CHECK_THROWS_AS(fabric::make_checkpoint_io("sharded", {.verify = false})->load(path), CheckpointCorrupt);
  }
}

TEST_CASE("what all ranks have is written once, spread over them", "[checkpoint][sharded]") {
  Folder folder;
  auto writer = fabric::checkpoint::make_shard_writer();
  auto place = writer->begin(folder / "c");
  Value::Map model;
  for (int i = 0; i < 8; ++i) model.append("t" + std::to_string(i), torch::ones({1000}));
  std::vector<Value> parts;
  for (int rank = 0; rank < 4; ++rank) parts.push_back(writer->write(place, {Value(model)}, rank, 4));
  for (const auto& part : parts) CHECK(part.at("sums").as_string().size() == 2 * sizeof(std::uint32_t));
  writer->commit(place, folder / "c", parts);
  CHECK(same(fabric::make_checkpoint_io()->load(folder / "c"), Value(model)));
}

TEST_CASE("a save replaces the old checkpoint whole, or leaves it", "[checkpoint][sharded]") {
  Folder folder;
  const auto path = folder / "c";
  write(path, 2);
  write(path, 3);
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(3)));
  CHECK(sorted_names(folder.path()) == std::vector<std::string>{"c"});

  auto writer = fabric::checkpoint::make_shard_writer();
  auto place = writer->begin(path);
  auto part = writer->write(place, part_of(0, 2), 0, 2);
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(3)));
  CHECK_THROWS_WITH(write(path, 1), Contains("another process is saving there"));
  CHECK_THROWS_WITH(writer->commit(place, path, {part}), Contains("'model.w") && Contains("chunks are missing"));
  writer->discard(place);
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(3)));
  CHECK(sorted_names(folder.path()) == std::vector<std::string>{"c"});

  // Ranks that do not see the same folder.
  place = writer->begin(path);
  std::vector<Value> both{writer->write(place, part_of(0, 2), 0, 2), writer->write(place, part_of(1, 2), 1, 2)};
  fs::remove(folder / ".c.partial/shard-00001-of-00002.safetensors");
  CHECK_THROWS_WITH(writer->commit(place, path, both), Contains("rank 1") && Contains("shared file system"));
  writer->discard(place);
  CHECK_THROWS_WITH(writer->write(place, part_of(1, 2), 1, 2), Contains("rank 1") && Contains("shared file system"));
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(3)));

  // What a kill left goes with the next save.
  fs::create_directories(folder / ".c.partial");
  std::ofstream(folder / ".c.partial/lock") << "";
  std::ofstream(folder / ".c.partial/shard-00000-of-00002.safetensors") << "half";
  write(path, 1);
  CHECK(sorted_names(folder.path()) == std::vector<std::string>{"c"});
  // A kill between the two renames of a file system that cannot exchange names.
  fs::rename(path, folder / ".c.replaced");
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(1)));
  write(path, 2);
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(2)));
  CHECK(sorted_names(folder.path()) == std::vector<std::string>{"c"});

  std::ofstream(folder / "file") << "a checkpoint of one file, say";
  write(folder / "file", 2);
  CHECK(same(fabric::make_checkpoint_io()->load(folder / "file"), whole(2)));
  fs::create_directory(folder / "photos");
  std::ofstream(folder / "photos/1.jpg") << "precious";
  CHECK_THROWS_WITH(write(folder / "photos", 2), Contains("holds something other than a checkpoint"));
  CHECK(fs::exists(folder / "photos/1.jpg"));
  std::ofstream(path / "notes.txt") << "precious";
  CHECK_THROWS_WITH(write(path, 1), Contains("'notes.txt', which would be lost"));
  CHECK(fs::exists(path / "notes.txt"));
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(2)));
}

TEST_CASE("ranks that hold other things do not replace a good checkpoint by one that nobody can read",
          "[checkpoint][sharded]") {
  Folder folder;
  const auto path = folder / "c";
  write(path, 2);
  auto writer = fabric::checkpoint::make_shard_writer();
  // What a rank of two makes of its part; the text of the error, empty where the save went well.
  auto attempt = [&](int rank, const std::function<void(StatePart&)>& change) {
    auto place = writer->begin(path);
    std::vector<Value> parts;
    std::vector<StatePart> own{part_of(0, 2), part_of(1, 2)};
    change(own[static_cast<std::size_t>(rank)]);
    for (int each = 0; each < 2; ++each)
      parts.push_back(writer->write(place, own[static_cast<std::size_t>(each)], each, 2));
    std::string text;
    try {
      writer->commit(place, path, parts);
    } catch (const CheckpointError& error) {
      text = error.what();
      writer->discard(place);
    }
    CHECK(sorted_names(folder.path()) == std::vector<std::string>{"c"});
    return text;
  };
  int refusals = 0;
  for (std::int64_t size : {1, 4, 1000})
    for (const char* name : {"a_first", "z_last"}) {
      INFO(name << " of " << size);
      auto text = attempt(1, [&](StatePart& part) { part.values["model"][name] = torch::ones({size}); });
      // Whatever rank 1 has beside, what is there is what rank 0 has.
      CHECK(same(fabric::make_checkpoint_io()->load(path), whole(2)));
      if (text.empty()) continue;
      ++refusals;
      CHECK_THAT(text, Contains("do not save the same tensors") && Contains("PerRank"));
    }
  CHECK(refusals > 0);
  CHECK_THAT(attempt(1, [](StatePart& part) { part.per_rank.clear(); }), Contains("PerRank"));
  CHECK(same(fabric::make_checkpoint_io()->load(path), whole(2)));
}

TEST_CASE("shards that are missing, cut, swapped or of another save are told apart", "[checkpoint][sharded][bad]") {
  Folder folder;
  const auto path = folder / "c", other = folder / "other";
  const std::string name = "shard-00001-of-00002.safetensors", first = "shard-00000-of-00002.safetensors";
  auto fails = [&] {
    std::string text;
    try {
      fabric::make_checkpoint_io()->load(path);
    } catch (const CheckpointError& error) {
      text = error.what();
    }
    return text;
  };
  auto fresh = [&] {
    fs::remove_all(path);
    write(path, 2);
  };
  write(other, 2);
  fresh();
  fs::remove(path / name);
  CHECK_THAT(fails(), Contains(name));
  fresh();
  fs::resize_file(path / name, fs::file_size(path / name) - 1);
  CHECK_THAT(fails(), Contains(name) && Contains("bytes instead of"));
  fresh();
  fs::copy_file(other / name, path / name, fs::copy_options::overwrite_existing);
  CHECK_THAT(fails(), Contains(name) && Contains("belongs to another save"));
  fresh();
  fs::rename(path / name, path / "x");
  fs::copy_file(path / first, path / name);
  CHECK_THAT(fails(), Contains(name));
  fresh();
  fs::remove(path / "index.json");
  CHECK_THAT(fails(), Contains("folder"));
}

TEST_CASE("an index that lies is refused", "[checkpoint][sharded][bad]") {
  Folder folder;
  write(folder / "c", 2);
  auto good = read_file(folder / "c/index.json");
  auto refused = [&](const std::string& from, const std::string& to) {
    INFO(from << " -> " << to);
    auto bad = good;
    auto at = bad.find(from);
    REQUIRE(at != bad.npos);
    bad.replace(at, from.size(), to);
    CHECK_THROWS_AS(fabric::checkpoint::ShardedIndex::parse(bad, false), CheckpointError);
  };
  CHECK_NOTHROW(fabric::checkpoint::ShardedIndex::parse(good));
  refused("torchfabric-sharded", "something");
  refused("\"version\":2", "\"version\":4");
  refused("shard-00000", "../shard-00000");
  refused("shard-00000", "shard-00001");
  refused("[7,5]", "[8,5]");
  refused("[7,5]", "[9223372036854775807,9223372036854775807]");
  refused("\"dtype\":\"F32\"", "\"dtype\":\"F33\"");
  refused("\"files\":[", "\"files\":[3,");
  refused("\"tensors\":[", "\"tensors\":[{},");
  for (std::size_t cut = 0; cut < good.size(); cut += 7)
    CHECK_THROWS_AS(fabric::checkpoint::ShardedIndex::parse(good.substr(0, cut), false), CheckpointError);
}
