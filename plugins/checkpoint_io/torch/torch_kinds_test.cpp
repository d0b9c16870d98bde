// What torch.save writes besides dense tensors and plain values, in each of its formats.
#include <torch/torch.h>

#include <algorithm>
#include <string>

#include <fabric/base/error.h>
#include <fabric/fabric.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"

using namespace fabric;
using namespace std::string_literals;
using Catch::Matchers::Contains;
using checkpoint_test::fixture;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using checkpoint_test::same;
using checkpoint_test::write_file;

namespace {

Value load_fixture(const std::string& name) { return make_checkpoint_io()->load(fixture(name)); }
CheckpointPart load_part(const std::string& name, const std::string& key) {
  return load_checkpoint_part(fixture(name), key);
}
torch::Tensor tensor_in(const Value& value, const char* key) { return value.at(key).as<torch::Tensor>(); }

torch::Tensor complex_pair(double sign) {
  return torch::complex(torch::tensor({1.0f, 3.0f}), torch::tensor({2.0f, -1.0f}) * sign);
}

bool lists(const std::vector<std::string>& found, const std::string& text) {
  return std::find(found.begin(), found.end(), text) != found.end();
}

}  // namespace

TEST_CASE("views that conjugate or negate their storage keep their values", "[checkpoint_io][torch]") {
  for (const char* name : {"kinds.pt", "kinds_protocol4.pt"}) {
    INFO(name);
    Value v = load_fixture(name);
    CHECK(same(v.at("conj"), complex_pair(-1)));
    CHECK(same(v.at("plain"), complex_pair(1)));
    CHECK(same(v.at("negated"), torch::tensor({-1.0f, 2.0f})));
    CHECK(same(v.at("with_attribute"), torch::full({2}, 7.0f)));
    CHECK(same(v.at("float8_e4m3fnuz"), torch::ones(2).to(torch::kFloat8_e4m3fnuz)));
  }
}

TEST_CASE("sparse tensors and values made by calls are read", "[checkpoint_io][torch]") {
  auto dense = torch::tensor({{0.0f, 1.0f, 0.0f}, {2.0f, 0.0f, 3.0f}});
  for (const char* name : {"kinds.pt", "kinds_protocol4.pt"}) {
    INFO(name);
    Value v = load_fixture(name);
    CHECK(tensor_in(v, "coo").layout() == torch::kSparse);
    CHECK(tensor_in(v, "coo").is_coalesced());
    CHECK(tensor_in(v, "csr").layout() == torch::kSparseCsr);
    CHECK(tensor_in(v, "csc").layout() == torch::kSparseCsc);
    CHECK(tensor_in(v, "bsr").layout() == torch::kSparseBsr);
    for (const char* kind : {"coo", "csr", "csc"}) CHECK(torch::equal(tensor_in(v, kind).to_dense(), dense));
    CHECK(torch::equal(tensor_in(v, "bsr").to_dense(), torch::eye(4)));
    CHECK(tensor_in(v, "uncoalesced").to_dense()[0][1].item<float>() == 3);
    auto number = tensor_in(v, "complex");
    CHECK(number.dim() == 0);
    CHECK(number.item<c10::complex<double>>() == c10::complex<double>(1.5, -2));
    CHECK(v.at("bytearray").as_string() == std::string("\x00\xff", 2));
    CHECK(v.at("no_bytes").as_string().empty());
    CHECK(v.at("layout").as_string() == "torch.sparse_csr");
    CHECK(same(v.at("set"), Value::List{3}));
  }
}

TEST_CASE("arguments that are not known are refused by name", "[checkpoint_io][torch]") {
  Folder folder;
  auto with = [&](const std::string& from, const std::string& to) {
    std::string bytes = read_file(fixture("legacy.pt"));  // without checksums
    for (std::size_t at = 0; (at = bytes.find(from, at)) != bytes.npos; at += to.size())
      bytes.replace(at, from.size(), to);
    write_file(folder / "f", bytes);
    return make_checkpoint_io()->load(folder / "f");
  };
  CHECK_NOTHROW(with("conj", "conj"));
  CHECK_THROWS_WITH(with("X\4\0\0\0conjq"s, "X\4\0\0\0jnocq"s), Contains("the property 'jnoc'"));
  CHECK_THROWS_WITH(with("torch.sparse_coo", "torch.sparse_xyz"), Contains("the layout 'torch.sparse_xyz'"));
}

TEST_CASE("PyTorch's format from before 1.6 is read", "[checkpoint_io][torch]") {
  for (const char* name : {"legacy.pt", "legacy_protocol4.pt"}) {
    INFO(name);
    Value v = load_fixture(name);
    auto base = torch::arange(24, torch::kFloat).reshape({2, 3, 4});
    CHECK(same(v.at("a"), base));
    CHECK(same(v.at("b"), base[1]));
    CHECK(tensor_in(v, "b").storage_offset() == 0);
    CHECK(tensor_in(v, "a")[1].data_ptr() == tensor_in(v, "b").data_ptr());  // one storage
    CHECK(same(v.at("half"), torch::arange(3).to(torch::kHalf)));
    CHECK(tensor_in(v, "none").numel() == 0);
    CHECK(same(v.at("conj"), complex_pair(-1)));
    CHECK(tensor_in(v, "coo").to_dense().sum().item<float>() == 6);
    CHECK(v.at("epoch").as_int() == 3);
  }
  Folder folder;
  const std::string bytes = read_file(fixture("legacy.pt"));
  for (std::size_t size : {bytes.size() - 1, bytes.size() / 2, std::size_t{40}, std::size_t{16}}) {
    write_file(folder / "f", bytes.substr(0, size));
    CHECK_THROWS_AS(make_checkpoint_io()->load(folder / "f"), CheckpointCorrupt);
  }
}

TEST_CASE("Python objects beside what is asked for are passed over and listed", "[checkpoint_io][torch]") {
  CHECK_THROWS_WITH(load_fixture("python_objects.pt"), Contains("argparse.Namespace"));
  auto part = load_part("python_objects.pt", "model");
  CHECK(same(part.value, Value::Map{{"w", torch::arange(2, torch::kFloat)}}));
  CHECK(part.left_out.empty());
  CHECK(part.passed_over.size() == 4);
  CHECK(lists(part.passed_over, "args: argparse.Namespace"));
  CHECK(lists(part.passed_over, "best: numpy._core.multiarray.scalar"));
  CHECK(lists(part.passed_over, "history.1: numpy._core.multiarray.scalar"));
  CHECK(lists(part.passed_over, "where: pathlib.PosixPath"));

  auto all = load_part("python_objects.pt", "");
  CHECK(all.passed_over.empty());
  CHECK(all.left_out.size() == 4);
  CHECK(all.value.as_map().size() == 2);
  CHECK(same(all.value.at("history"), Value::List{1, Value()}));

  CHECK(same(load_part("python_objects.pt", "model.w").value, torch::arange(2, torch::kFloat)));
  CHECK_THROWS_AS(load_part("python_objects.pt", "modle"), CheckpointKeyError);
  CHECK_THROWS_WITH(load_part("python_objects.pt", "modle"), Contains("did you mean 'model'"));
  CHECK_THROWS_WITH(load_part("python_objects.pt", "args"), Contains("argparse.Namespace"));
  CHECK_THROWS_WITH(load_part("runs_code.pt", "trap"), Contains("system"));
  CHECK(same(load_part("runs_code.pt", "w").value, torch::ones(1)));
  // The other format, and the older one.
  CHECK(same(load_part("legacy.pt", "epoch").value, Value(3)));
  CHECK(load_part("model.safetensors", "3.bias").value.as<torch::Tensor>().numel() == 1);
}

TEST_CASE("a module is restored from a file that holds Python objects beside it", "[checkpoint_io][torch]") {
  struct Weights : torch::nn::Module {
    torch::Tensor w = register_parameter("w", torch::zeros(2));
  };
  auto weights = std::make_shared<Weights>();
  Fabric fabric({.accelerator = "cpu"});
  State state{{"model", *weights}};
  fabric.load(fixture("python_objects.pt"), state);
  CHECK(torch::equal(weights->w, torch::arange(2, torch::kFloat)));
  CHECK_THROWS_WITH(fabric.load(fixture("python_objects.pt")), Contains("argparse.Namespace"));
}

TEST_CASE("bytes behind the archive are passed over, as PyTorch does", "[checkpoint_io][torch]") {
  CHECK(same(load_fixture("trailing_bytes.pt"), Value::Map{{"w", torch::arange(2, torch::kFloat)}}));
}

TEST_CASE("an archive of C++'s torch::save is refused with the way to read it", "[checkpoint_io][torch]") {
  Folder folder;
  torch::save(torch::nn::Linear(2, 1), (folder / "f.pt").string());
  CHECK_THROWS_WITH(make_checkpoint_io()->load(folder / "f.pt"), Contains("torch::load") && Contains("fabric.save"));
}

TEST_CASE("a byte that changed is found by its checksum", "[checkpoint_io][torch][corrupt]") {
  Folder folder;
  auto io = make_checkpoint_io("torch");
  io->save(Value::Map{{"w", torch::arange(100000, torch::kFloat)}}, folder / "f.pt");
  std::string bytes = read_file(folder / "f.pt");
  CHECK_NOTHROW(io->load(folder / "f.pt"));
  bytes[bytes.size() / 2] ^= 1;
  write_file(folder / "f.pt", bytes);
  CHECK_THROWS_AS(io->load(folder / "f.pt"), CheckpointCorrupt);
  CHECK_THROWS_WITH(io->load(folder / "f.pt"), Contains("data/0") && Contains("checksum"));
}

TEST_CASE("safetensors of types without numbers here are bytes with the type's name", "[checkpoint_io][parity]") {
  Value v = load_fixture("packed_types.safetensors");
  CHECK(v.at("four").at("dtype").as_string() == "F4");
  CHECK(same(v.at("four").at("shape"), Value::List{2, 8}));
  CHECK(same(v.at("four").at("bytes"), torch::arange(8, torch::kByte)));
  CHECK(v.at("six").at("dtype").as_string() == "F6_E2M3");
  CHECK(same(v.at("six").at("bytes"), torch::arange(8, 11, torch::kByte)));
  CHECK(tensor_in(v, "fnuz").scalar_type() == torch::kFloat8_e4m3fnuz);
  CHECK(same(load_fixture("metadata_null.safetensors"), Value::Map{{"w", torch::tensor({1.0f, 2.0f})}}));
  Folder folder;
  auto io = make_checkpoint_io();
  io->save(v, folder / "f");
  CHECK(same(io->load(folder / "f"), v));
}
