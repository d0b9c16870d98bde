#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <torch/torch.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace fabric;
using Catch::Matchers::Contains;
using checkpoint_test::fixture;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using checkpoint_test::write_file;

namespace {

std::string safetensors(const std::string& header, const std::string& data) {
  std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + data;
}

Value load_bytes(const std::string& bytes) {
  Folder folder;
  write_file(folder / "f", bytes);
  return make_checkpoint_io()->load(folder / "f");
}

const std::string kEight(8, '\1');

/// A zip with these stored entries, well formed; the checksums are left zero, as readers of this format do not use
/// them.
std::string zip(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out, directory;
  auto put = [](std::string& to, std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> 8 * i);
  };
  for (const auto& [name, data] : entries) {
    std::string common;
    put(common, 0, 2), put(common, 0, 2), put(common, 0, 4), put(common, 0, 4);
    put(common, data.size(), 4), put(common, data.size(), 4), put(common, name.size(), 2), put(common, 0, 2);
    put(directory, 0x02014b50, 4), put(directory, 20, 2), put(directory, 20, 2);
    directory += common;
    put(directory, 0, 2), put(directory, 0, 2), put(directory, 0, 2), put(directory, 0, 4),
        put(directory, out.size(), 4);
    directory += name;
    put(out, 0x04034b50, 4), put(out, 20, 2);
    out += common + name + data;
  }
  std::size_t start = out.size();
  out += directory;
  put(out, 0x06054b50, 4), put(out, 0, 4), put(out, entries.size(), 2), put(out, entries.size(), 2);
  put(out, directory.size(), 4), put(out, start, 4), put(out, 0, 2);
  return out;
}

Value load_pickle(const std::string& pickle, const std::string& storage = kEight) {
  return load_bytes(zip({{"a/data.pkl", pickle}, {"a/data/0", storage}, {"a/version", "3\n"}}));
}

/// A tensor of float32 over storage 0, whose count, offset, sizes and strides are given as pickle operations.
std::string tensor_pickle(const std::string& count, const std::string& offset, const std::string& sizes,
                          const std::string& strides, const std::string& type = "FloatStorage") {
  return "\x80\x02"
         "ctorch._utils\n_rebuild_tensor_v2\n((U\7storagectorch\n" +
         type +
         "\nU\1"
         "0U\3"
         "cpu" +
         count + "tQ" + offset + "(" + sizes + "t(" + strides +
         "t\x89N"
         "tR.";
}
std::string small_int(int value) { return std::string("K") + static_cast<char>(value); }
/// A 32-bit integer as a pickle operation.
std::string integer(std::uint32_t value) {
  std::string out = "J1234";
  std::memcpy(out.data() + 1, &value, sizeof value);
  return out;
}
const std::string kHuge = "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
/// More values than are read, each of which takes a byte of the file.
constexpr std::size_t kTooMany = (std::size_t{8} << 20) + 1;

}  // namespace

TEST_CASE("a wrong safetensors header is refused, with what is wrong", "[checkpoint_io][corrupt]") {
  auto refuses = [](const std::string& header, const std::string& why, const std::string& data = kEight) {
    INFO(header);
    CHECK_THROWS_AS(load_bytes(safetensors(header, data)), CheckpointCorrupt);
    CHECK_THROWS_WITH(load_bytes(safetensors(header, data)), Contains(why));
  };
  auto entry = [](const std::string& type, const std::string& shape, const std::string& offsets) {
    return R"({"w":{"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  CHECK(load_bytes(safetensors(entry("F32", "[2]", "[0,8]"), kEight)).as_map().size() == 1);
  refuses(entry("F32", "[2]", "[0,8]"), "only 4", "1234");
  refuses(entry("F32", "[2]", "[0,8]"), "the file holds 9", kEight + "x");
  refuses(entry("F99", "[2]", "[0,8]"), "unknown type 'F99'");
  refuses(entry("F64", "[2]", "[0,8]"), "16 bytes");
  refuses(entry("F32", "[3]", "[0,8]"), "12 bytes");
  refuses(entry("F32", "[-2]", "[0,8]"), "non-negative");
  refuses(entry("F32", "[2.0]", "[0,8]"), "non-negative");
  refuses(entry("F32", "2", "[0,8]"), "instead of a list");
  refuses(entry("F32", "[2]", "[8,0]"), "ends before it begins");
  refuses(entry("F32", "[2]", "[-8,0]"), "non-negative");
  refuses(entry("F32", "[1]", "[4,8]"), "gap");
  refuses(entry("F32", "[2]", "[0]"), "two data_offsets");
  refuses(entry("F32", "[2]", "[18446744073709551608,18446744073709551615]"), "non-negative");
  refuses(entry("F32", "[4611686018427387904,4611686018427387904]", "[0,8]"), "too large");
  refuses(entry("F32", "[0,4611686018427387904,4611686018427387904]", "[0,0]"), "too large", "");
  refuses(entry("F32", "[" + std::string(200, '1').replace(1, 199, std::string(199, ' ')) + "]", "[0,8]"), "4 bytes");
  refuses(R"({"w":{"shape":[2],"data_offsets":[0,8]}})", "no 'dtype'");
  refuses(R"({"w":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", "dtype");
  refuses(R"({"w":[1]})", "instead of a map");
  refuses(
      R"({"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
      "twice");
  refuses(
      R"({"v":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"w":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
      "overlaps");
  refuses(R"({"v":{"dtype":"BOOL","shape":[8],"data_offsets":[0,8]}})", "booleans", std::string(8, '\2'));
  refuses(R"({"__metadata__":{"a":1}})", "only strings", "");
  refuses(R"({"__metadata__":"a"})", "instead of a map", "");
  refuses("{]", "header", "");
  refuses("{", "header", "");
  refuses("{\"\xff\":1}", "UTF-8", "");
  refuses(std::string(100, '{'), "header", "");
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100000; ++i) deep += '[';
  refuses(deep, "nested deeper", "");
}

TEST_CASE("a wrong length of the header is refused", "[checkpoint_io][corrupt]") {
  for (std::uint64_t length :
       {std::uint64_t{100}, std::uint64_t{200'000'000}, UINT64_MAX, UINT64_MAX - 7, std::uint64_t{1} << 63}) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    CHECK_THROWS_WITH(load_bytes(bytes + "{}"), Contains("claims a header"));
  }
}

TEST_CASE("a wrong structure is refused", "[checkpoint_io][corrupt]") {
  auto refuses = [](std::string structure, const std::string& why) {
    for (std::size_t at = 0; (at = structure.find('"', at)) != structure.npos; at += 2) structure.insert(at, "\\");
    auto bytes = safetensors(
        R"({"__metadata__":{"fabric":")" + structure + R"("},"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
        kEight);
    INFO(structure);
    CHECK_THROWS_WITH(load_bytes(bytes), Contains(why));
  };
  refuses(R"({"version":1,"tree":{"a":{"$tensor":"v"}}})", "does not hold");
  refuses(R"({"version":1,"tree":{}})", "'w' has no place");
  refuses(R"({"version":1,"tree":{"a":{"$thing":"w"}}})", "unknown mark '$thing'");
  refuses(R"({"version":1,"tree":{"a":{"$tensor":7}}})", "unknown mark");
  refuses(R"({"version":1,"tree":{"a":{"$complex":"w"}}})", "complex");
  refuses(R"({"version":1,"tree":{"a":{"$bytes":"f"},"w":{"$tensor":"w"}}})", "half a byte");
  refuses(R"({"version":1,"tree":{"a":{"$bytes":"zz"},"w":{"$tensor":"w"}}})", "hexadecimal");
  refuses(R"({"version":1,"tree":{"$pairs":[["a",1],["a",2]]}})", "twice");
  refuses(R"({"version":1,"tree":{"$pairs":[1]}})", "something else");
  refuses(R"({"version":2,"tree":{}})", "version 2");
  refuses(R"({"tree":{}})", "version");
  refuses("nonsense", "structure");
}

TEST_CASE("a pickle that asks for too much or makes no sense is refused", "[checkpoint_io][corrupt]") {
  auto refuses = [](const std::string& pickle, const std::string& why, const std::string& storage = kEight) {
    INFO(why);
    CHECK_THROWS_WITH(load_pickle(pickle, storage), Contains(why));
    CHECK_THROWS_AS(load_pickle(pickle, storage), CheckpointError);
  };
  const std::string two = small_int(2);
  CHECK(load_pickle(tensor_pickle(two, small_int(0), two, small_int(1))).as<torch::Tensor>().numel() == 2);
  refuses(tensor_pickle(small_int(3), small_int(0), two, small_int(1)), "should have 12 bytes");
  refuses(tensor_pickle(kHuge, small_int(0), two, small_int(1)), "storage '0' should have");
  refuses(tensor_pickle(two, small_int(1), two, small_int(1)), "beyond its storage");
  refuses(tensor_pickle(two, kHuge, two, small_int(1)), "beyond its storage");
  refuses(tensor_pickle(two, small_int(0), two, two), "beyond its storage");
  refuses(tensor_pickle(two, small_int(0), two, kHuge), "beyond its storage");
  refuses(tensor_pickle(two, small_int(0), kHuge, small_int(0)), "too large");
  refuses(tensor_pickle(two, small_int(0), two + two, small_int(1)), "another number of strides");
  refuses(tensor_pickle(two, small_int(0), "J\xff\xff\xff\xff", small_int(1)), "wrong number");
  refuses(tensor_pickle(two, small_int(0), two, "J\xff\xff\xff\xff"), "wrong number");
  refuses(tensor_pickle(small_int(8), small_int(0), small_int(8), small_int(1), "BoolStorage"), "booleans",
          std::string(8, '\2'));
  refuses(tensor_pickle(two, small_int(0), two, small_int(1), "NoStorage"), "'torch.NoStorage'");
  refuses("\x80\x02", "ends too early");
  refuses("\x80\x02.", "more or less than one");
  refuses("\x80\x02NN.", "more or less than one");
  refuses("\x80\x02(N.", "more or less than one");
  refuses("\x80\x09N.", "protocol 9");
  refuses(
      "\x80\x02"
      "h\5.",
      "never stored");
  refuses("\x80\x02t.", "never opened");
  refuses("\x80\x02]N(a.", "empty stack");
  refuses("\x80\x02N(Ka", "ends too early");
  refuses("\x80\x02N(e.", "no list");
  refuses("\x80\x02}(Nu.", "key without a value");
  refuses("\x80\x02}(]Nu.", "neither text nor an integer");
  refuses(
      "\x80\x02}(U\1"
      "1NK\1Nu.",
      "two keys that read as '1'");
  refuses(
      "\x80\x02"
      "cos\nsystem\n(U\4truetR.",
      "'os.system'");
  refuses(
      "\x80\x02"
      "c__builtin__\neval\n.",
      "'__builtin__.eval'");
  refuses("\x80\x02U\2osU\6system\x93.", "'os.system'");
  refuses("\x80\x02ios\nsystem\n.", "0x69");
  refuses("\x80\x02X\xff\xff\xff\xff", "ends too early");
  refuses(
      "\x80\x02\x8a\x09"
      "123456789.",
      "64 bits");
  refuses(
      "\x80\x02U\3"
      "foo)R.",
      "calls something that is no class");
  refuses(
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor_v2\n)R.",
      "too few arguments");
  refuses(
      "\x80\x02U\3"
      "fooQ.",
      "no storage");
  refuses("\x80\x02]q\1h\1a.", "nested deeper");  // a list that holds itself
  std::string deep = "\x80\x02N";
  for (int i = 0; i < 1'000'000; ++i) deep += '\x85';
  refuses(deep + ".", "nested deeper");
  std::string doubling = "\x80\x02N";  // each level twice the one before
  for (int i = 0; i < 50; ++i)
    doubling += std::string("q") + static_cast<char>(i) + "h" + static_cast<char>(i) + "\x86";
  refuses(doubling + ".", "grows far beyond");
  std::string copies = "\x80\x02(" + std::string(100000, 'N') + "tq\1";  // a large list, made anew again and again
  for (int i = 0; i < 1000; ++i) copies += "ctorch\nSize\n(h\1tR";
  refuses(copies + ".", "grows far beyond");
}

TEST_CASE("a file cannot ask for far more memory than it has bytes", "[checkpoint_io][corrupt]") {
  CHECK_THROWS_WITH(load_pickle("\x80\x02(" + std::string(kTooMany, 'N') + "l."),
                    Contains("keep large data in tensors"));
  CHECK_THROWS_WITH(load_pickle("\x80\x04N" + std::string(kTooMany, '\x94') + "."),  // notes of the same value
                    Contains("keep large data in tensors"));
  std::string many = R"({"a":[0)";
  for (std::size_t i = 0; i < kTooMany; ++i) many += ",0";
  CHECK_THROWS_WITH(load_bytes(safetensors(many + "]}", "")), Contains("more than 8388608 values"));
}

TEST_CASE("what could not be read again is not written", "[checkpoint_io][corrupt]") {
  Folder folder;
  const Value many = Value::List(kTooMany);
  for (std::string format : {"safetensors", "torch"}) {
    INFO(format);
    CHECK_THROWS_WITH(make_checkpoint_io(format)->save(many, folder / "f"), Contains("Keep large data in tensors"));
  }
  const Value text = std::string(std::size_t{64} << 20, 'x');
  CHECK_THROWS_WITH(make_checkpoint_io("torch")->save(text, folder / "f"), Contains("Keep large data in tensors"));
  CHECK(folder.names().empty());
}

TEST_CASE("an expanded tensor is read where its copy is not out of proportion", "[checkpoint_io][corrupt]") {
  auto expanded = [](const std::string& size) { return tensor_pickle(small_int(2), small_int(1), size, small_int(0)); };
  auto tensor = load_pickle(expanded(integer(1000))).as<torch::Tensor>();
  CHECK(torch::equal(tensor, tensor[0].expand({1000})));
  constexpr std::uint32_t kMost = (64 << 20) / sizeof(float);
  CHECK(load_pickle(expanded(integer(kMost))).as<torch::Tensor>().numel() == kMost);
  auto refuses = [](const std::string& pickle, const std::string& storage = kEight) {
    CHECK_THROWS_WITH(load_pickle(pickle, storage), Contains("expanded tensor"));
    CHECK_THROWS_AS(load_pickle(pickle, storage), CheckpointCorrupt);
  };
  refuses(expanded(integer(kMost + 1)));
  refuses(expanded(std::string("\x8a\x06\x00\x00\x00\x00\x00\x01", 8)));  // 2^40
  // All of them count together: this one makes each of its tensors of half of what is allowed.
  const std::string one = expanded(integer(kMost / 2)).substr(2);
  const std::string three = "\x80\x02(" + one.substr(0, one.size() - 1) + one.substr(0, one.size() - 1) +
                            one.substr(0, one.size() - 1) + "l.";
  refuses(three);
  // A large file may hold larger ones.
  const std::string storage(std::size_t{8} << 20, '\1');
  CHECK(load_pickle(expanded(integer(kMost + 1)), storage).as<torch::Tensor>().numel() == kMost + 1);
}

TEST_CASE("a file too large for the memory is not called damaged", "[checkpoint_io][corrupt]") {
#if !defined(__SANITIZE_ADDRESS__)  // which needs more addresses than any limit
  Folder folder;
  constexpr std::int64_t kNumbers = 8 << 20;
  std::string header = R"({"w":{"dtype":"F64","shape":[8388608],"data_offsets":[0,67108864]}})";
  while ((header.size() + 8) % 8 == 0) header += ' ';  // at an odd place: the numbers are to be copied
  write_file(folder / "f", safetensors(header, std::string(kNumbers * sizeof(double), '\0')));
  CHECK(make_checkpoint_io()->load(folder / "f").at("w").as<torch::Tensor>().numel() == kNumbers);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::vector<void*> taken;  // what earlier tests freed could hold the copy
    for (int i = 0; i < 512; ++i) taken.push_back(std::malloc(std::size_t{1} << 20));
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit limit{};
    getrlimit(RLIMIT_AS, &limit);
    // Room for the mapping of the file, but not for a copy.
    limit.rlim_cur = pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) + (std::size_t{96} << 20);
    setrlimit(RLIMIT_AS, &limit);
    int code = 1;
    try {
      make_checkpoint_io()->load(folder / "f");
    } catch (const CheckpointCorrupt&) {
      code = 2;
    } catch (const CheckpointError& error) {
      code = std::string(error.what()).find("not enough memory") == std::string::npos ? 3 : 0;
    }
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
#endif
}

TEST_CASE("a damaged zip archive is refused", "[checkpoint_io][corrupt]") {
  std::string good = zip({{"a/data.pkl", "\x80\x02N."}});
  CHECK(load_bytes(good).is_null());
  auto refuses = [](const std::string& bytes, const std::string& why) {
    CHECK_THROWS_WITH(load_bytes(bytes), Contains(why));
  };
  refuses(good.substr(0, good.size() - 1), "truncated");
  refuses(zip({{"b/data", ""}}), "no data.pkl");
  refuses(zip({{"a/data.pkl", "N."}, {"b/data.pkl", "N."}}), "two files data.pkl");
  refuses(zip({{"a/data.pkl", "N."}, {"a/data.pkl", "N."}}), "twice");
  refuses(zip({{"a/data.pkl", "N."}, {"a/byteorder", "big"}}), "big-endian");
  refuses(zip({{"a/data.pkl", tensor_pickle(small_int(2), small_int(0), small_int(2), small_int(1))}}),
          "lacks the data of storage '0'");
  auto with = [&](std::size_t at, const std::string& bytes) {
    auto copy = good;
    return copy.replace(at, bytes.size(), bytes);
  };
  std::size_t central = good.find("PK\1\2"), end = good.find("PK\5\6");
  refuses(with(central + 10, "\x08"), "compressed");
  refuses(with(central + 8, "\x01"), "encrypted");
  refuses(with(central + 24, "\xff\xff\xff\x7f"), "two sizes");
  refuses(with(central + 20, std::string("\xff\xff\xff\x7f\xff\xff\xff\x7f")), "outside of the file");
  refuses(with(central + 42, "\xff\xff\xff\x7f"), "outside of the file");
  refuses(with(central + 42, "\x02"), "no entry where");
  refuses(with(central, "XXXX"), "damaged directory");
  refuses(with(end + 16, "\xff\xff\xff\x7f"), "directory outside");
  refuses(with(end + 10, "\xff\xff"), "ends too early");
}

TEST_CASE("no damage to a file makes loading crash", "[checkpoint_io][corrupt][fuzz]") {
  Folder folder;
  auto io = make_checkpoint_io();
  io->save(Value::Map{{"w", torch::arange(6).reshape({2, 3})},
                      {"b", torch::ones(3, torch::kBool)},
                      {"c", torch::complex(torch::ones(2), torch::ones(2))},
                      {"n", Value::List{1, 2.5, "x", Value::Map{{"$a", 1}}}},
                      {"\xff", 1}},
           folder / "own");
  std::vector<std::string> seeds{read_file(folder / "own"), read_file(fixture("model.safetensors")),
                                 read_file(fixture("values.pt")), read_file(fixture("training.pt")),
                                 read_file(fixture("values_protocol4.pt"))};
  std::mt19937 random(20240607);
  auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  int loaded = 0, refused = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string bytes = seeds[below(seeds.size())];
    // Headers are where it matters: the front of one format, both ends of the other.
    auto place = [&] { return below(3) ? below(std::min<std::size_t>(bytes.size(), 2700)) : below(bytes.size()); };
    for (std::size_t i = 0, n = 1 + below(4); i < n && !bytes.empty(); ++i) {
      switch (below(6)) {
        case 0:
          bytes[place()] ^= static_cast<char>(1 << below(8));
          break;
        case 1:
          bytes[place()] = static_cast<char>(below(256));
          break;
        case 2:
          bytes.resize(below(bytes.size()));
          break;
        case 3:
          bytes.insert(place(), 1, static_cast<char>(below(256)));
          break;
        case 4:
          bytes.erase(place(), 1 + below(8));
          break;
        default:
          bytes.insert(place(), bytes.substr(place(), 1 + below(32)));
      }
    }
    write_file(folder / "f", bytes);
    try {
      Value value = io->load(folder / "f");
      for_each_leaf_tensor(value, [](at::Tensor& tensor, const std::string&) {
        if (tensor.defined()) tensor = tensor.clone();  // touches every byte that the file claims to hold
      });
      ++loaded;
    } catch (const CheckpointError&) {
      ++refused;
    }
  }
  CHECK(loaded > 50);
  CHECK(refused > 1000);
}
