// The tools on whole checkpoints: as functions, and as the program that people call.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/weight_shards.h>

#include "plugins/checkpoint_io/sharded/sharded_io.h"
#include "plugins/checkpoint_io/test_files.h"
#include "plugins/checkpoint_io/tools/tools.h"
#include "tests/support/catch.h"
#include "tests/support/shell.h"

using namespace checkpoint_test;
using namespace fabric;
using namespace fabric::checkpoint;
using Catch::Matchers::Contains;

namespace {

namespace fs = std::filesystem;

/// With tensors that are split by rows, complex ones and wide ones among them, and all that is not.
Value many_kinds() {
  torch::manual_seed(3);
  return Value::Map{{"model", Value::Map{{"large", torch::randn({700, 500})},
                                         {"wide", torch::randn({2, 300'000})},
                                         {"waves", torch::complex(torch::randn({300, 500}), torch::randn({300, 500}))},
                                         {"bias", torch::ones({5}, torch::kBFloat16)},
                                         {"a.b", torch::ones({1})},
                                         {"a", Value::Map{{"b", torch::zeros({1})}}},
                                         {"flags", torch::rand({1100, 1000}) > 0.5},
                                         {"none", at::Tensor()},
                                         {"empty", torch::empty({0, 4})},
                                         {"scalar", torch::tensor(2.5)}}},
                    {"own", Value::Map{{"per_rank", Value::List{1, torch::ones({2})}}}},
                    {"names", Value::List{"a", 2, 0.5}},
                    {"\xff", "\xfe"}};
}

void flip_bit(const fs::path& file, std::size_t at) {
  auto bytes = read_file(file);
  bytes[at] = static_cast<char>(bytes[at] ^ 16);
  write_file(file, bytes);
}

ShellResult call_tool(const std::string& arguments) { return run_shell(FABRIC_CHECKPOINT, arguments); }

}  // namespace

TEST_CASE("consolidate after shard gives the same file, to the last bit", "[checkpoint][tools]") {
  Folder folder;
  make_checkpoint_io()->save(many_kinds(), folder / "f");
  for (int shards : {1, 2, 3, 7}) {
    INFO(shards << " shards");
    auto made = shard_checkpoint(folder / "f", folder / "c", shards);
    CHECK(made.tensors == 10);
    CHECK(same(make_checkpoint_io()->load(folder / "c"), many_kinds()));
    CHECK(std::distance(fs::directory_iterator(folder / "c"), fs::directory_iterator()) == shards + 1);
    auto one = consolidate_checkpoint(folder / "c", folder / "g");
    CHECK((one.tensors == made.tensors && one.bytes == made.bytes));
    CHECK(read_file(folder / "g") == read_file(folder / "f"));
  }
  // Large tensors are in every shard.
  CHECK(read_file(folder / "c/shard-00006-of-00007.safetensors").size() > 700 * 500 * 4 / 7);
  // Out of shards into others, and out of Python's file.
  shard_checkpoint(folder / "c", folder / "d", 2);
  CHECK(same(make_checkpoint_io()->load(folder / "d"), many_kinds()));
  shard_checkpoint(fixture("training.pt"), folder / "p", 3);
  CHECK(same(make_checkpoint_io()->load(folder / "p"), make_checkpoint_io()->load(fixture("training.pt"))));
  CHECK_THROWS_WITH(shard_checkpoint(fixture("legacy.pt"), folder / "q", 3), Contains("it is not dense"));
  CHECK(folder.names().size() == 5);
}

TEST_CASE("what ranks saved in parts consolidates to the file that one of them would have saved",
          "[checkpoint][tools]") {
  Folder folder;
  auto writer = make_shard_writer();
  const auto place = writer->begin(folder / "c");
  std::vector<Value> parts;
  const auto columns = torch::arange(12.0).reshape({3, 4});
  for (int rank : {0, 1}) {
    StatePart part{Value::Map{{"w", columns.slice(1, 2 * rank, 2 * rank + 2)}, {"own", torch::full({3}, rank)}},
                   {{"w", {{3, 4}, {0, 2 * rank}}}},
                   {"own"}};
    parts.push_back(writer->write(place, part, rank, 2));
  }
  writer->commit(place, folder / "c", parts);
  consolidate_checkpoint(folder / "c", folder / "f");
  const Value whole = Value::Map{
      {"w", columns}, {"own", Value::Map{{"per_rank", Value::List{torch::full({3}, 0), torch::full({3}, 1)}}}}};
  make_checkpoint_io()->save(whole, folder / "g");
  CHECK(read_file(folder / "f") == read_file(folder / "g"));
}

TEST_CASE("a tool that is told to stop leaves nothing half written", "[checkpoint][tools]") {
  Folder folder;
  // Holes, which read as zeros: more than is copied before the signal comes.
  std::string header = R"({"w":{"dtype":"F32","shape":[524288,2048],"data_offsets":[0,4294967296]}})";
  header.resize(128, ' ');
  write_file(folder / "large", std::string("\x80\0\0\0\0\0\0\0", 8) + header);
  fs::resize_file(folder / "large", 8 + 128 + (std::uint64_t{1} << 32));
  for (int signal : {SIGTERM, SIGINT}) {
    const pid_t tool = fork();
    if (tool == 0) {
      execl(FABRIC_CHECKPOINT, FABRIC_CHECKPOINT, "shard", (folder / "large").c_str(), (folder / "c").c_str(), "-n",
            "2", "--no-verify", nullptr);
      _exit(127);
    }
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!fs::exists(folder / ".c.partial/shard-00000-of-00002.safetensors") &&
           !fs::exists(folder / ".c.partial/.shard-00000-of-00002.safetensors.partial") &&
           std::chrono::steady_clock::now() < limit)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(kill(tool, signal) == 0);
    int status = 0;
    REQUIRE(waitpid(tool, &status, 0) == tool);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == signal));
    CHECK(folder.names() == std::vector<std::string>{"large"});
  }
}

TEST_CASE("verify names each damaged tensor, its file and its bytes", "[checkpoint][tools]") {
  Folder folder;
  make_checkpoint_io()->save(many_kinds(), folder / "f");
  auto good = verify_checkpoint(folder / "f");
  CHECK((good.faults.empty() && good.unchecked == 0 && good.tensors == 10));
  const auto size = fs::file_size(folder / "f");
  CHECK((good.checked < size && good.checked > size - 5000));
  flip_bit(folder / "f", size - 1);
  flip_bit(folder / "f", size / 2);
  auto bad = verify_checkpoint(folder / "f");
  REQUIRE(bad.faults.size() == 2);
  CHECK_THAT(bad.faults[0], Contains("the tensor 'model.") && Contains(" of 'f': they give the checksum (crc32c) "));
  CHECK_THAT(bad.faults[1], Contains("to " + std::to_string(size) + " of 'f'"));

  shard_checkpoint(fixture("training.pt"), folder / "c", 2);
  CHECK(verify_checkpoint(folder / "c").faults.empty());
  const std::string first = "shard-00000-of-00002.safetensors", second = "shard-00001-of-00002.safetensors";
  flip_bit(folder / "c" / first, fs::file_size(folder / "c" / first) - 1);
  fs::resize_file(folder / "c" / second, fs::file_size(folder / "c" / second) - 1);
  auto both = verify_checkpoint(folder / "c").faults;
  REQUIRE(both.size() == 2);
  CHECK_THAT(both[0], Contains(second) && Contains("bytes instead of"));
  CHECK_THAT(both[1], Contains("the tensor '") && Contains(first));
  fs::remove(folder / "c" / second);
  CHECK_THAT(verify_checkpoint(folder / "c").faults[0], Contains(second) && Contains("No such file"));
  fs::rename(folder / "c" / first, folder / "c" / second);
  CHECK(verify_checkpoint(folder / "c").faults.size() >= 2);
}

TEST_CASE("verify looks at Python's files, too, and says where nothing can be compared", "[checkpoint][tools]") {
  Folder folder;
  const auto archive = read_file(fixture("training.pt"));
  write_file(folder / "a", archive);
  CHECK(verify_checkpoint(folder / "a").faults.empty());
  CHECK(verify_checkpoint(folder / "a").checked > 0);
  // An entry begins behind its header of 30 bytes, its name and an extra field, whose lengths are in the header.
  const auto header = archive.rfind("PK\3\4", archive.find("/data/0"));
  auto number = [&](std::size_t at) {
    return static_cast<unsigned char>(archive[header + at]) +
           256u * static_cast<unsigned char>(archive[header + at + 1]);
  };
  flip_bit(folder / "a", header + 30 + number(26) + number(28));
  auto faults = verify_checkpoint(folder / "a").faults;
  REQUIRE(faults.size() == 1);
  CHECK_THAT(faults[0], Contains("/data/0' (the tensor '") && Contains("(crc32)"));
  auto legacy = verify_checkpoint(fixture("legacy.pt"));
  CHECK((legacy.faults.empty() && legacy.checked == 0 && legacy.unchecked > 0));
  CHECK_THROWS_AS(verify_checkpoint(folder / "none"), CheckpointError);
  write_file(folder / "x", "what is this");
  CHECK_THROWS_WITH(verify_checkpoint(folder / "x"), Contains((folder / "x").string()) && Contains("neither"));
}

TEST_CASE("folders of Python's distributed checkpoints are listed and compared", "[checkpoint][tools][dcp]") {
  Folder folder;
  const auto copy = folder / "two_ranks";
  fs::copy(fs::path(FABRIC_DCP_FIXTURES) / "two_ranks", copy);
  const auto found = verify_checkpoint(copy);
  CHECK((found.faults.empty() && found.format == "dcp" && found.files == 3));
  CHECK(found.checked > 0);
  CHECK(found.unchecked == fs::file_size(copy / ".metadata"));
  const auto text = inspect_checkpoint(copy);
  CHECK_THAT(text, Contains("dcp, 3 files") && Contains("rows") && Contains("BF16") && Contains("[3:5, 0:3]"));
  CHECK_THAT(text, Contains("epoch  3\n"));
  CHECK_THAT(inspect_checkpoint(fs::path(FABRIC_DCP_FIXTURES) / "one_rank"),
             Contains("passed over the Python object where: pathlib.PurePosixPath"));
  // What Lightning puts beside it.
  make_checkpoint_io("torch")->save(Value::Map{{"step", 12}}, copy / "meta.pt");
  CHECK(verify_checkpoint(copy).files == 4);
  CHECK_THAT(inspect_checkpoint(copy), Contains("step   12\n"));
  shard_checkpoint(copy, folder / "c", 2);
  CHECK(same(make_checkpoint_io()->load(folder / "c"), make_checkpoint_io()->load(copy)));
  CHECK_THROWS_WITH(shard_checkpoint(fs::path(FABRIC_DCP_FIXTURES) / "one_rank", folder / "d", 2),
                    Contains("pathlib.PurePosixPath"));

  const auto numbers = torch::arange(4, torch::kFloat);  // everywhere, on whichever rank it lies, and others begin so
  const std::string content(static_cast<const char*>(numbers.const_data_ptr()), numbers.nbytes());
  for (const char* name : {"__0_0.distcp", "__1_0.distcp"}) {
    const auto bytes = read_file(copy / name);
    for (std::size_t at = 0; (at = bytes.find(content, at)) != bytes.npos; ++at) flip_bit(copy / name, at);
  }
  const auto damaged = verify_checkpoint(copy);
  std::string faults;
  for (const auto& fault : damaged.faults) faults += fault + "\n";
  CHECK_THAT(faults,
             Contains("of 'everywhere' is damaged: bytes ") && Contains("_0.distcp': they give the checksum (crc32) "));
  CHECK_THROWS_AS(shard_checkpoint(copy, folder / "d", 2), CheckpointCorrupt);
  fs::remove(copy / "__1_0.distcp");
  CHECK_THROWS_WITH(verify_checkpoint(copy), Contains("missing") && Contains("'__1_0.distcp'"));
  CHECK(folder.names().size() == 2);
}

TEST_CASE("weights in several files are listed, and compared where the files have sums", "[checkpoint][tools]") {
  Folder folder;
  const Value weights = Value::Map{{"b", torch::zeros({3})}, {"a", torch::ones({2})}};
  REQUIRE(save_weight_shards(weights, folder / "hub", 12) == 2);
  for (const auto& path : {folder / "hub", folder / "hub" / "model.safetensors.index.json"}) {
    const auto found = verify_checkpoint(path);
    CHECK((found.faults.empty() && found.format == "huggingface" && found.files == 3 && found.tensors == 2));
    CHECK((found.checked == 0 && found.unchecked > 20));
  }
  CHECK_THAT(inspect_checkpoint(folder / "hub"),
             Contains("huggingface, 3 files, 2 tensors, 20 bytes, without checksums") &&
                 Contains("model-00002-of-00002.safetensors"));
  shard_checkpoint(folder / "hub", folder / "c", 2);
  CHECK(same(make_checkpoint_io()->load(folder / "c"), weights));

  // Files of ours and of PyTorch's behind one index.
  fs::create_directory(folder / "mixed");
  const auto ours = folder / "mixed" / "1.safetensors", theirs = folder / "mixed" / "2.bin";
  make_checkpoint_io()->save(Value::Map{{"a", torch::ones({2})}}, ours);
  make_checkpoint_io("torch")->save(Value::Map{{"b", torch::zeros({3})}}, theirs);
  write_file(folder / "mixed" / "model.index.json", R"({"weight_map": {"a": "1.safetensors", "b": "2.bin"}})");
  const auto good = verify_checkpoint(folder / "mixed");
  CHECK((good.faults.empty() && good.checked > 20));
  CHECK(good.unchecked == fs::file_size(folder / "mixed" / "model.index.json"));
  flip_bit(ours, fs::file_size(ours) - 1);
  write_file(folder / "mixed" / "3.bin", "what is this");
  write_file(folder / "mixed" / "model.index.json",
             R"({"weight_map": {"a": "1.safetensors", "b": "2.bin", "c": "3.bin", "d": "4.bin"}})");
  const auto faults = verify_checkpoint(folder / "mixed").faults;
  REQUIRE(faults.size() == 3);
  CHECK_THAT(faults[0], Contains("'3.bin': it is neither"));
  CHECK_THAT(faults[1], Contains("'4.bin'") && Contains("No such file"));
  CHECK_THAT(faults[2], Contains("the tensor 'a' is damaged") && Contains("of '1.safetensors'"));
}

TEST_CASE("a damaged source is not copied, unless that is asked for; nothing is left behind", "[checkpoint][tools]") {
  Folder folder;
  make_checkpoint_io("sharded")->save(many_kinds(), folder / "c");
  const auto shard = folder / "c/shard-00000-of-00001.safetensors";
  flip_bit(shard, fs::file_size(shard) - 1);
  write_file(folder / "f", "before");
  CHECK_THROWS_WITH(consolidate_checkpoint(folder / "c", folder / "f"), Contains("the tensor '"));
  CHECK_THROWS_AS(shard_checkpoint(folder / "c", folder / "d", 3), CheckpointCorrupt);
  CHECK(read_file(folder / "f") == "before");
  CHECK(folder.names().size() == 2);
  CHECK_THROWS_WITH(consolidate_checkpoint(folder / "f", folder / "g"), Contains("is no sharded checkpoint"));
  CHECK_THROWS_AS(shard_checkpoint(folder / "c", folder / "d", 0), MisuseError);
}

TEST_CASE("inspect lists tensors with their places, and values", "[checkpoint][tools]") {
  Folder folder;
  make_checkpoint_io()->save(Value::Map{{"w", torch::ones({2, 3})}, {"epoch", 3}, {"x\n", "y\x1b[2J"}}, folder / "f");
  const auto start = read_file(folder / "f").size() - 24;
  auto text = inspect_checkpoint(folder / "f");
  CHECK_THAT(text, Contains("safetensors, 1 file, 1 tensor, 24 bytes, with checksums"));
  CHECK_THAT(text, Contains("w       F32   [2, 3]  24     f     " + std::to_string(start)));
  CHECK_THAT(text, Contains("epoch  3\n"));
  CHECK(text.find('\x1b') == text.npos);
  fs::create_directory(folder / "unfinished");
  CHECK_THROWS_WITH(inspect_checkpoint(folder / "unfinished"), Contains("without the index of a checkpoint"));
  shard_checkpoint(folder / "f", folder / "c", 2);
  CHECK_THAT(inspect_checkpoint(folder / "c"), Contains("sharded, 2 files") && Contains("shard-00000-of-00002"));
  CHECK_THAT(inspect_checkpoint(fixture("training.pt")), Contains("torch, 1 file") && Contains("model.0.weight"));
  CHECK_THAT(inspect_checkpoint(fixture("python_objects.pt")), Contains("passed over the Python object args"));
}

TEST_CASE("the program fabric-checkpoint tells by its code what it found", "[checkpoint][tools]") {
  Folder folder;
  const std::string source = shell_word(fixture("training.pt")), sharded = shell_word(folder / "c");
  auto is = [](const std::string& arguments, int code, const std::string& text) {
    auto result = call_tool(arguments);
    INFO(arguments);
    CHECK(result.code == code);
    CHECK_THAT(result.output, Contains(text));
  };
  is("shard " + source + " " + sharded + " -n 2", 0, "tensors");
  is("verify " + sharded, 0, "are as they were written");
  is("consolidate " + sharded + " " + shell_word(folder / "f"), 0, "-> " + (folder / "f").string());
  is("inspect " + shell_word(folder / "f"), 0, "TENSOR");
  is("verify " + shell_word(fixture("legacy.pt")), 3, "have no checksum");
  is("verify " + shell_word(fs::path(FABRIC_DCP_FIXTURES) / "two_ranks"), 3, "have no checksum");
  const auto piped = shell_word(folder / "piped");
  is("consolidate " + sharded + " /dev/stdout | cat >" + piped, 0, "");
  CHECK(read_file(folder / "piped") == read_file(folder / "f"));
  flip_bit(folder / "f", fs::file_size(folder / "f") - 1);
  is("verify " + shell_word(folder / "f"), 1, "DAMAGED, 1 fault");
  is("verify " + shell_word(folder / "none"), 1, "No such file");
  is("--help", 0, "usage: fabric verify PATH");
  is("", 2, "a command is needed");
  is("verfy x", 2, "did you mean 'verify'");
  is("verify", 2, "needs one path");
  is("shard " + source + " " + sharded, 2, "needs -n N");
  is("shard " + source + " " + sharded + " -n 0", 2, "from 1 to 4096");
  is("verify x --no-verfy", 2, "did you mean '--no-verify'");
  is("consolidate " + sharded + " x.pt", 2, "fabric convert");
}

TEST_CASE("the tools need memory for a piece, not for the checkpoint", "[checkpoint][tools]") {
  Folder folder;
  constexpr std::int64_t kTensors = 8;
  {
    Value::Map all;
    for (std::int64_t i = 0; i < kTensors; ++i)
      all.append("t" + std::to_string(i), torch::full({48, 1 << 20}, i, torch::kByte));
    make_checkpoint_io()->save(Value(all), folder / "f");
  }
  auto resident = [] {
    std::int64_t size = 0, pages = 0;
    std::ifstream("/proc/self/statm") >> size >> pages;
    return pages * sysconf(_SC_PAGESIZE);
  };
  std::int64_t before = resident(), most = 0, told = 0;
  CopyOptions options;
  options.progress = [&](const char*, std::uint64_t done, std::uint64_t total) {
    most = std::max(most, resident() - before);
    told += done == total;
  };
  shard_checkpoint(folder / "f", folder / "c", 2, options);
  consolidate_checkpoint(folder / "c", folder / "g", options);
  CHECK(read_file(folder / "g") == read_file(folder / "f"));
  CHECK(told == 4);  // checked and written, twice
  CHECK(most > 0);
  CHECK(most < std::int64_t{64} << 20);  // two pieces of 16 MiB, one in the source's pages, and what libraries take
}
