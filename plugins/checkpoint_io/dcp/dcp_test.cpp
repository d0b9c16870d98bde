// Folders that Python's torch.distributed.checkpoint wrote (tests/parity/record_dcp.py), and damaged ones.
#include <torch/torch.h>

#include <functional>

#include <fabric/base/error.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>
#include <fabric/plugins/checkpoint_io/read_options.h>
#include <fabric/state/state.h>

#include "plugins/checkpoint_io/dcp/dcp_metadata.h"
#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"
#include "tests/support/failure_of.h"

using namespace fabric;
using Catch::Matchers::Contains;
using checkpoint_test::Folder;
using checkpoint_test::read_file;
using checkpoint_test::write_file;

namespace {

namespace fs = std::filesystem;

fs::path recorded(const std::string& name) { return fs::path(FABRIC_DCP_FIXTURES) / name; }

Value load(const fs::path& path) { return make_checkpoint_io()->load(path); }
at::Tensor tensor(const Value& value, const char* key) { return value.at(key).as<at::Tensor>(); }

/// What record_dcp.py calls `value`.
at::Tensor counted(at::IntArrayRef shape, at::ScalarType type = at::kFloat) {
  return torch::arange(c10::multiply_integers(shape), at::kFloat).reshape(shape).to(type);
}
bool holds(const Value& value, const char* key, const at::Tensor& expected) {
  const auto found = tensor(value, key);
  return found.scalar_type() == expected.scalar_type() && found.sizes() == expected.sizes() && found.equal(expected);
}

/// A copy of a recorded folder to do damage to.
fs::path copy_of(const std::string& name, const Folder& into) {
  const auto copy = into / name;
  fs::copy(recorded(name), copy);
  return copy;
}

/// `.metadata` with every `from` replaced by `to`, of the same length.
void change_metadata(const fs::path& folder, const std::string& from, const std::string& to) {
  auto bytes = read_file(folder / ".metadata");
  REQUIRE(from.size() == to.size());
  REQUIRE(bytes.find(from) != bytes.npos);
  for (std::size_t at = 0; (at = bytes.find(from, at)) != bytes.npos;) bytes.replace(at, from.size(), to);
  write_file(folder / ".metadata", bytes);
}

}  // namespace

TEST_CASE("a folder that one rank of Python wrote comes back as it was nested", "[checkpoint_io][dcp]") {
  const auto part = load_checkpoint_part(recorded("one_rank"));
  const Value& all = part.value;
  const Value& types = all.at("types");
  CHECK(holds(types, "bfloat16", counted({3}, at::kBFloat16)));
  CHECK(holds(types, "int64", counted({2, 2}, at::kLong)));
  CHECK(holds(types, "bool", torch::tensor({true, false})));
  CHECK(tensor(types, "complex64")[0].item<c10::complex<float>>() == c10::complex<float>(1, 2));
  CHECK(holds(types, "scalar", torch::tensor(2.5f)));
  CHECK(holds(types, "empty", torch::empty({0, 3})));
  CHECK(holds(types, "transposed", counted({2, 3}).t()));
  REQUIRE(all.at("history").as_list().size() == 2);
  CHECK(all.at("history").as_list()[0].as<at::Tensor>().equal(counted({2})));
  CHECK(all.at("history").as_list()[1].at("best").as_double() == 0.5);
  CHECK(all.at("epoch").as_int() == 3);
  CHECK(all.at("name").as_string() == "é 漢");
  CHECK(all.at("nothing").is_null());
  CHECK(all.at("settings").at("flags").as_list()[0].as_bool());
  const auto& group = all.at("optimizer").at("param_groups").as_list().at(0);
  CHECK(group.at("lr").as_double() == 0.05);
  CHECK(group.at("betas").as_list()[1].as_double() == 0.95);
}

TEST_CASE("an object in the folder that only Python could make is never made", "[checkpoint_io][dcp]") {
  const auto all = load_checkpoint_part(recorded("one_rank"));
  CHECK(all.left_out == std::vector<std::string>{"where: pathlib.PurePosixPath"});
  CHECK_FALSE(all.value.find("where"));
  const auto model = load_checkpoint_part(recorded("one_rank"), "model");
  CHECK(model.left_out.empty());
  CHECK(model.passed_over.size() == 1);
  CHECK(tensor(model.value, "weight").sizes() == at::IntArrayRef{2, 3});
  CHECK_THAT(failure_of<CheckpointError>([] { load(recorded("one_rank")); }),
             Contains("'where'") && Contains("pathlib.PurePosixPath"));
  CHECK(peek_checkpoint(recorded("one_rank")).at("epoch").as_int() == 3);
}

TEST_CASE("what two ranks of Python spread is put together", "[checkpoint_io][dcp]") {
  const Value all = load(recorded("two_ranks"));
  CHECK(holds(all, "rows", counted({5, 3})));
  CHECK(holds(all, "columns", counted({2, 5}, at::kBFloat16)));
  CHECK(holds(all, "one_row", counted({1, 2})));
  CHECK(holds(all, "everywhere", counted({4})));
  CHECK(holds(all, "plain", counted({3})));
  CHECK(all.at("epoch").as_int() == 3);
  const Value one = load_checkpoint_part(recorded("one_rank")).value;
  CHECK(holds(all.at("model"), "weight", tensor(one.at("model"), "weight")));
  CHECK(holds(all.at("optimizer").at("state").at("0"), "exp_avg",
              tensor(one.at("optimizer").at("state").at("0"), "exp_avg")));
}

TEST_CASE("no more of the folder is read than the boxes that are wanted", "[checkpoint_io][dcp]") {
  const Value all = make_checkpoint_io()->open(recorded("two_ranks"));
  const auto rows = tensor(all, "rows");
  REQUIRE(stored_in(rows));
  at::Tensor box = torch::empty({2, 2}, at::kDouble);
  read_box(rows, {2, 1}, box);  // the last row of rank 0's, the first of rank 1's
  CHECK(box.equal(counted({5, 3}).narrow(0, 2, 2).narrow(1, 1, 2).to(at::kDouble)));
}

TEST_CASE("model and optimizer of Python train on", "[checkpoint_io][dcp]") {
  torch::nn::Linear model(torch::nn::LinearOptions(3, 2).bias(false));
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1.0));
  State state{{"model", model}, {"optimizer", optimizer}};
  const Value rest = restore_state(state, make_checkpoint_io()->open(recorded("one_rank")), StateAccess::plain());
  CHECK(rest.at("epoch").as_int() == 3);
  const Value saved = load_checkpoint_part(recorded("one_rank")).value;
  CHECK(model->weight.equal(tensor(saved.at("model"), "weight")));
  const Value now = optimizer_state_dict(optimizer);
  CHECK(holds(now.at("state").at("0"), "exp_avg_sq", tensor(saved.at("optimizer").at("state").at("0"), "exp_avg_sq")));
  CHECK(now.at("param_groups").as_list()[0].at("lr").as_double() == 0.05);
}

TEST_CASE("what Lightning puts beside the folder's tensors is read, too", "[checkpoint_io][dcp]") {
  Folder folder;
  const auto copy = copy_of("two_ranks", folder);
  make_checkpoint_io("torch")->save(Value::Map{{"step", 12}, {"epoch", 99}}, copy / "meta.pt");
  const Value all = load(copy);
  CHECK(all.at("step").as_int() == 12);
  CHECK(all.at("epoch").as_int() == 3);
}

TEST_CASE("missing and torn files are told by name", "[checkpoint_io][dcp][corrupt]") {
  Folder folder;
  const auto copy = copy_of("two_ranks", folder);
  const auto whole = read_file(copy / "__1_0.distcp");
  write_file(copy / "__1_0.distcp", whole.substr(0, whole.size() - 1));
  CHECK_THAT(failure_of<CheckpointCorrupt>([&] { load(copy); }), Contains("__1_0.distcp") && Contains("torn"));
  fs::remove(copy / "__1_0.distcp");
  fs::remove(copy / "__0_0.distcp");
  CHECK_THAT(failure_of<CheckpointCorrupt>([&] { load(copy); }),
             Contains("missing") && Contains("'__0_0.distcp'") && Contains("'__1_0.distcp'"));
  write_file(copy / ".metadata", "");
  CHECK_THROWS_AS(load(copy), CheckpointCorrupt);
}

TEST_CASE("changed bytes of a tensor are noticed before anything is restored", "[checkpoint_io][dcp][corrupt]") {
  Folder folder;
  const auto copy = copy_of("two_ranks", folder);
  const auto expected = counted({4});  // everywhere
  const std::string content(static_cast<const char*>(expected.const_data_ptr()), expected.nbytes());
  for (const char* name : {"__0_0.distcp", "__1_0.distcp"}) {
    auto bytes = read_file(copy / name);
    for (std::size_t at = 0; (at = bytes.find(content, at)) != bytes.npos; ++at) bytes[at + 15] ^= 1;
    write_file(copy / name, bytes);
  }
  CHECK_THAT(failure_of<CheckpointCorrupt>([&] { load(copy); }), Contains("checksum"));
  CHECK_THAT(failure_of<CheckpointCorrupt>([&] { make_checkpoint_io()->open(copy); }), Contains("checksum"));
  CHECK_THAT(failure_of<CheckpointCorrupt>([&] { load_checkpoint_part(copy, "everywhere"); }),
             Contains("its entry 'everywhere'") && Contains("checksum"));
  CHECK(load_checkpoint_part(copy, "epoch").value.as_int() == 3);
  // Whoever asks for it gets what there is.
  const auto unchecked = make_checkpoint_io("safetensors", {.verify = false});
  CHECK_FALSE(tensor(unchecked->load(copy), "everywhere").equal(expected));
  CHECK_FALSE(in_memory(tensor(unchecked->open(copy), "everywhere")).equal(expected));
  CHECK(load_checkpoint_part(copy, "everywhere", {.verify = false}).value.as<at::Tensor>().numel() == 4);
}

TEST_CASE("a .metadata that does not add up is refused with the name", "[checkpoint_io][dcp][corrupt]") {
  const auto refused = [](const std::string& from, const std::string& to, const std::string& text) {
    Folder folder;
    const auto copy = copy_of("two_ranks", folder);
    change_metadata(copy, from, to);
    INFO(from << " -> " << to);
    CHECK_THAT(failure_of<CheckpointError>([&] { load(copy); }), Contains(text));
  };
  refused("__1_0.distcp", "../../../etc", "no plain name");
  refused("TensorStorageMetadata", "TensorStorageMetadatA", "TensorStorageMetadatA");
  refused("state_dict_metadata", "state_dict_metadatA", "state_dict_metadata");
  refused("bfloat16", "qfloat16", "'columns'");
  refused("\x8c\x05sizes", "\x8c\x05size_", "'sizes'");
  refused("\x8c\x0cstorage_data", "\x8c\x0cstorage_datA", "storage_data");
}

TEST_CASE("no damage to .metadata makes loading crash", "[checkpoint_io][dcp][corrupt][fuzz]") {
  Folder folder;
  const auto copy = copy_of("two_ranks", folder);
  const auto whole = read_file(copy / ".metadata");
  unsigned refused = 0;
  for (std::size_t at = 0; at < whole.size(); at += 3)
    for (const int change : {1, 0x80, -1}) {
      auto bytes = whole;
      if (change < 0)
        bytes.resize(at);
      else
        bytes[at] = static_cast<char>(bytes[at] ^ change);
      try {
        for (const auto& entry : checkpoint::parse_dcp_metadata(bytes)) {
          std::int64_t elements = 0;
          for (const auto& chunk : entry.chunks) elements += entry.type ? c10::multiply_integers(chunk.shape) : 0;
          REQUIRE((!entry.type || elements == c10::multiply_integers(entry.shape)));
        }
      } catch (const CheckpointError&) {
        ++refused;
      }
    }
  CHECK(refused > whole.size() / 3);
}
