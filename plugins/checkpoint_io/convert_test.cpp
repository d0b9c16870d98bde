#include <fabric/plugins/checkpoint_io/checkpoint_io.h>

#include "plugins/checkpoint_io/test_files.h"
#include "tests/support/catch.h"
#include "tests/support/shell.h"

using namespace fabric;
using Catch::Matchers::Contains;
using checkpoint_test::fixture;
using checkpoint_test::Folder;
using checkpoint_test::same;

namespace {

ShellResult convert(const std::string& arguments) { return run_shell(FABRIC_CONVERT, arguments); }

}  // namespace

TEST_CASE("fabric-convert changes the format and nothing else", "[convert]") {
  Folder folder;
  auto io = make_checkpoint_io();
  auto there = convert(shell_word(fixture("training.pt")) + " " + shell_word(folder / "a.safetensors"));
  INFO(there.output);
  CHECK(there.code == 0);
  CHECK_THAT(there.output, Contains("(torch) ->") && Contains("tensors"));
  auto back =
      convert(shell_word(folder / "a.safetensors") + " --from=safetensors --to torch " + shell_word(folder / "b"));
  INFO(back.output);
  CHECK(back.code == 0);
  Value original = io->load(fixture("training.pt"));
  CHECK(same(io->load(folder / "a.safetensors"), original));
  CHECK(same(io->load(folder / "b"), original));

  CHECK(
      convert(shell_word(fixture("training.pt")) + " " + shell_word(folder / "m.safetensors") + " --key model").code ==
      0);
  CHECK(same(io->load(folder / "m.safetensors"), original.at("model")));
  CHECK(
      convert(shell_word(fixture("training.pt")) + " " + shell_word(folder / "w.pt") + " --key model.0.weight").code ==
      0);
  CHECK(same(io->load(folder / "w.pt"), original.at("model").at("0.weight")));
}

TEST_CASE("fabric-convert takes the weights out of a file that holds Python objects too", "[convert]") {
  Folder folder;
  const std::string in = shell_word(fixture("python_objects.pt"));
  auto result = convert(in + " " + shell_word(folder / "m.safetensors") + " --key model");
  INFO(result.output);
  CHECK(result.code == 0);
  CHECK_THAT(result.output, Contains("passed over the Python object args: argparse.Namespace"));
  CHECK(make_checkpoint_io()->load(folder / "m.safetensors").at("w").as<at::Tensor>().numel() == 2);
  auto whole = convert(in + " " + shell_word(folder / "all.safetensors"));
  CHECK(whole.code == 1);
  CHECK_THAT(whole.output, Contains("argparse.Namespace") && Contains("--key"));
  CHECK(folder.names().size() == 1);
  auto legacy = convert(shell_word(fixture("legacy.pt")) + " " + shell_word(folder / "l.pt") + " --from torch --key a");
  INFO(legacy.output);
  CHECK(legacy.code == 0);
}

TEST_CASE("fabric-convert takes what there is of a damaged file when it is told to", "[convert]") {
  Folder folder;
  const std::string in = shell_word(folder / "a.safetensors"), out = shell_word(folder / "b.pt");
  REQUIRE(convert(shell_word(fixture("training.pt")) + " " + in).code == 0);
  auto bytes = checkpoint_test::read_file(folder / "a.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  checkpoint_test::write_file(folder / "a.safetensors", bytes);
  auto refused = convert(in + " " + out);
  CHECK(refused.code == 1);
  CHECK_THAT(refused.output, Contains("is damaged"));
  CHECK(convert(in + " " + out + " --no-verify").code == 0);
}

TEST_CASE("fabric-convert says what is wrong", "[convert]") {
  Folder folder;
  const std::string good = shell_word(fixture("training.pt")), out = shell_word(folder / "o.pt");
  auto fails = [](const std::string& arguments, int code, const std::string& text) {
    auto result = convert(arguments);
    INFO(arguments);
    CHECK(result.code == code);
    CHECK_THAT(result.output, Contains(text));
  };
  fails(good, 2, "two files are needed");
  fails(good + " " + shell_word(folder / "o"), 2, "--to");
  fails(good + " " + out + " --form torch", 2, "did you mean '--from'");
  fails(good + " " + out + " --to safetensor", 2, "did you mean 'safetensors'");
  fails(good + " " + out + " --to", 2, "needs a value");
  fails(good + " " + out + " --from safetensors", 1, "is a torch file");
  fails(good + " " + out + " --key modle", 1, "did you mean 'model'");
  fails(shell_word(folder / "none") + " " + out, 1, "No such file");
  fails(shell_word(fixture("runs_code.pt")) + " " + out, 1, "system");
  fails("--help", 0, "usage: fabric-convert");
  fails(good + " " + out + " --help=model", 2, "--help takes no value");
  CHECK(folder.names().empty());
}

TEST_CASE("fabric-convert renames tensors by rules", "[convert]") {
  Folder folder;
  auto io = make_checkpoint_io();
  const Value original = io->load(fixture("training.pt"));
  const std::string in = shell_word(fixture("training.pt")), out = shell_word(folder / "m.safetensors");
  auto result = convert(in + " " + out + " --key model --rename '^0[.](?=w)=first.' --rename='^first=head'");
  INFO(result.output);
  CHECK(result.code == 0);
  const Value renamed = io->load(folder / "m.safetensors");
  CHECK(same(renamed.at("head.weight"), original.at("model").at("0.weight")));
  CHECK(renamed.find("0.bias"));
  CHECK_THAT(convert(in + " " + out + " --rename '^none$=x'").output, Contains("'^none$'"));

  auto fails = [&](const std::string& rule, int code, const std::string& text) {
    auto failed = convert(in + " " + shell_word(folder / "no.safetensors") + " --key model --rename '" + rule + "'");
    CHECK(failed.code == code);
    CHECK_THAT(failed.output, Contains(text));
  };
  fails("(=x", 1, "'('");
  fails("x", 2, "PATTERN=REPLACEMENT");
  fails("weight|bias=x", 1, "'0.bias'");
  CHECK_FALSE(std::filesystem::exists(folder / "no.safetensors"));
}

TEST_CASE("fabric-convert writes weights in several files, and reads folders of others", "[convert]") {
  Folder folder;
  const std::string in = shell_word(fixture("training.pt")), out = shell_word(folder / "hub");
  auto result = convert(in + " " + out + " --key model --max-shard-size 50B");
  INFO(result.output);
  CHECK(result.code == 0);
  CHECK_THAT(result.output, Contains("files)"));
  auto back = convert(out + " " + shell_word(folder / "m.pt") + " --from huggingface");
  INFO(back.output);
  CHECK(back.code == 0);
  CHECK(same(make_checkpoint_io()->load(folder / "m.pt"),
             make_checkpoint_io()->load(fixture("training.pt")).at("model")));
  CHECK(convert(in + " " + shell_word(folder / "x") + " --key model --max-shard-size 5XB").code == 2);
  CHECK(convert(in + " " + shell_word(folder / "x") + " --key model --max-shard-size 1GB --to torch").code == 2);
  CHECK_THAT(convert(in + " " + shell_word(folder / "x") + " --max-shard-size 1GB").output, Contains("--key"));

  const std::string dcp = shell_word(std::filesystem::path(FABRIC_DCP_FIXTURES) / "two_ranks");
  auto python = convert(dcp + " " + shell_word(folder / "p.safetensors") + " --from dcp");
  INFO(python.output);
  CHECK(python.code == 0);
  CHECK(make_checkpoint_io()->load(folder / "p.safetensors").at("rows").as<at::Tensor>().size(0) == 5);
}
