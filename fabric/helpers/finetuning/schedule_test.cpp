#include <fabric/helpers/finetuning/schedule_validation_internal.h>

#include <fabric/helpers/finetuning/python_regex_internal.h>

#include "tests/support/finetuning_support.h"

using namespace finetuning_test;
using namespace fabric;

namespace {

struct Checked {
  FinetuningSchedule schedule;
  Said said;
  std::string error;
  std::string mended;
};

// A schedule from YAML through reading, expansion and checks, as the scheduler does it.
Checked check(const std::string& yaml, const torch::nn::Module& model, bool epochs_only = false,
              const Folder& folder = {}) {
  Checked out;
  out.mended = folder.file("Net_ft_schedule_valid.yaml");
  FinetuningMessages messages(log::Level::debug, true);
  messages.set_sink(out.said.sink());
  try {
    auto source = load_schedule_source(folder.write("s.yaml", yaml), {});
    source.mended = out.mended;
    out.schedule = read_schedule(source, messages);
    ModelParameters parameters(model);
    expand_schedule(out.schedule, parameters, source, messages);
    check_transitions(out.schedule, out.schedule.size() - 1, epochs_only, source, messages);
  } catch (const ConfigError& error) {
    out.error = error.what();
  }
  return out;
}

Checked check(const std::string& yaml) { return check(yaml, *Net()); }

const char* const kWhole = R"(
0: {params: [model.3.bias, model.3.weight]}
1: {params: ['model.2.*']}
2: {params: ['model.(0|1).(weight|bias)'], lr: 1e-6}
)";

}  // namespace

TEST_CASE("entries: exact names, patterns from the start of names, in the order listed", "[schedule]") {
  auto whole = check(kWhole);
  REQUIRE(whole.error == "");
  CHECK(whole.said.lines.empty());
  CHECK(whole.schedule.phases[0].params == Names{"model.3.bias", "model.3.weight"});
  CHECK(whole.schedule.phases[1].params == Names{"model.2.weight", "model.2.bias"});
  CHECK(whole.schedule.phases[2].params == Names{"model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias"});
  CHECK(*whole.schedule.phases[2].lr == 1e-6);
}

TEST_CASE("entries: a module's path takes the module alone, a pattern also what begins like it", "[schedule]") {
  Net deep(31);
  auto paths = check("0: {params: [model.30]}\n1: {params: [model.3]}", *deep);
  REQUIRE(paths.error == "");
  CHECK(paths.schedule.phases[0].params == Names{"model.30.weight", "model.30.bias"});
  CHECK(paths.schedule.phases[1].params == Names{"model.3.weight", "model.3.bias"});
  auto pattern = check("0: {params: [model.30]}\n1: {params: ['model.3.']}", *deep);
  CHECK(contains(pattern.error, "thawed more than once: model.30.weight, model.30.bias"));
}

TEST_CASE("entries: the rest of the model", "[schedule]") {
  auto rest = check("0: {params: [model.3]}\n1: {params: [<rest>]}");
  REQUIRE(rest.error == "");
  CHECK(rest.schedule.phases[1].params.size() == 6);
  auto inside = check("0: {params: [model.3, <rest>, model.0.bias]}\n1: {params: [model.1]}");
  CHECK(inside.schedule.phases[0].params ==
        Names{"model.3.weight", "model.3.bias", "model.0.weight", "model.2.weight", "model.2.bias", "model.0.bias"});
  CHECK(contains(check("0: {params: [<rest>]}\n1: {params: [<rest>]}").error, "is there twice"));
  CHECK(check("0: {params: [model]}\n1: {params: [<rest>]}").said.warned("nothing is left"));
}

namespace {

struct TiedImpl : torch::nn::Module {
  struct Head : torch::nn::Module {
    explicit Head(const at::Tensor& shared) {
      register_parameter("weight", shared);
      register_parameter("bias", torch::zeros({4}));
    }
  };
  TiedImpl() {
    auto embed = register_module("embed", torch::nn::Embedding(4, 3));
    register_module("head", std::make_shared<Head>(embed->weight));
  }
};
TORCH_MODULE(Tied);

}  // namespace

TEST_CASE("entries: aliases of tied weights are left out with a warning", "[schedule]") {
  Tied tied;
  ModelParameters parameters(*tied);
  CHECK(parameters.names() == Names{"embed.weight", "head.bias"});
  REQUIRE(parameters.source_of("head.weight"));
  CHECK(*parameters.source_of("head.weight") == "embed.weight");
  auto alias = check("0: {params: [head.weight, head.bias]}\n1: {params: [embed.weight]}", *tied);
  REQUIRE(alias.error == "");
  CHECK(alias.schedule.phases[0].params == Names{"head.bias"});
  CHECK(alias.said.warned("'head.weight' in phase 0 is another name of 'embed.weight'"));
  auto module = check("0: {params: [head]}\n1: {params: [embed]}", *tied);
  CHECK(module.schedule.phases[0].params == Names{"head.bias"});
  CHECK(module.said.warned("another name"));
  CHECK(check("0: {params: ['head.*']}", *tied).said.lines.empty());
}

TEST_CASE("keys: files, duplicates, names that are no numbers", "[schedule]") {
  CHECK(contains(error_of<ConfigError>([] { load_schedule_source("/nowhere/s.yaml", {}); }), "/nowhere/s.yaml"));
  CHECK(contains(error_of<ConfigError>([] { load_schedule_source(Tree(Tree::Map{}), {}); }), "an empty one"));
  CHECK(contains(check("0: {params: [model.3]}\n0: {params: [model.2]}").error, "given twice"));
  CHECK(contains(check("0: {params: [model.3], params: [model.2]}").error, "given twice"));
  CHECK(contains(check("first: {params: [model.3]}").error, "the phase 'first' is no number"));
  CHECK(contains(check("[model.3]").error, "map of phases"));
  CHECK(contains(check("0: [model.3]").error, "a phase is a map with 'params', given a list"));
}

TEST_CASE("keys: fractions are cut off with a warning, the mended file is written", "[schedule]") {
  Folder folder;
  auto cut = check("0: {params: [model.3]}\n1.1: {params: [model.2]}\n'2': {params: [model.1]}", *Net(), false, folder);
  REQUIRE(cut.error == "");
  CHECK(cut.said.warned("1.1 -> 1"));
  CHECK(cut.schedule.size() == 3);
  Tree mended = read_tree_file(cut.mended);
  CHECK(mended.at("1").at("params").as_list()[0].as_string() == "model.2");
  CHECK(contains(check("1: {params: [model.3]}\n1.2: {params: [model.2]}").error, "phase 1 is there twice"));
}

TEST_CASE("keys: gaps and another start are an error that names the mended file, which loads", "[schedule]") {
  Folder folder;
  auto gap = check(
      "0: {params: [model.3.bias, model.3.weight]}\n2: {params: [model.0.bias, 'model.(1|2).*']}\n4: {params: "
      "[model.0.weight]}",
      *Net(), false, folder);
  CHECK(contains(gap.error, "numbered 0, 2, 4"));
  CHECK(contains(gap.error, gap.mended));
  auto again = load_schedule_source(gap.mended, {});
  auto schedule = read_schedule(again, {});
  ModelParameters parameters(*Net());
  expand_schedule(schedule, parameters, again, {});
  REQUIRE(schedule.size() == 3);
  CHECK(schedule.phases[1].params.front() == "model.0.bias");
  CHECK(contains(check("1: {params: [model.3]}\n2: {params: [model.2]}").error, "must begin with 0"));
  CHECK(contains(check("-1: {params: [model.3]}\n0: {params: [model.2]}").error, "-1, 0"));
}

TEST_CASE("phases: unknown keys name the nearest, values of another kind are named with the line", "[schedule]") {
  auto typo = check("0:\n  params: [model.3]\n1:\n  params: [model.2]\n  max_transition_epochs: 3\n");
  CHECK(contains(typo.error,
                 "s.yaml:5: phase 1: 'max_transition_epochs' is unknown; did you mean "
                 "'max_transition_epoch'?"));
  CHECK(contains(check("0: {params: [model.3]}\n1: {params: [model.2], lr: fast}").error, "'lr' is a number"));
  CHECK(contains(check("0: {params: [model.3]}\n1: {params: [model.2], lr: .nan}").error, "'lr' is a number"));
  CHECK(*check("0: {params: [model.3]}\n1: {params: [model.2], lr: '1e-06'}").schedule.phases[1].lr == 1e-6);
  CHECK(contains(check("0: {params: [model.3], max_transition_epoch: soon}").error, "whole number"));
  CHECK(contains(check("0: {params: [model.3], max_transition_epoch: 1.5}").error, "whole number"));
  CHECK(contains(check("0: {params: [3]}").error, "entry 0 is an integer"));
  CHECK(contains(check("0: {params: ['']}").error, "an empty one"));
  CHECK(check("0: {params: model.3}").schedule.phases[0].params.size() == 2);
}

TEST_CASE("phase 0: its lr is ignored, new optimizers and schedulers are for later phases", "[schedule]") {
  auto lr = check("0: {params: [model.3], lr: 0.1}\n1: {params: [model.2]}");
  CHECK(lr.error == "");
  CHECK(lr.said.warned("the lr of phase 0 is ignored"));
  CHECK(!lr.schedule.phases[0].lr);
  Folder folder;
  for (std::string key : {"new_optimizer", "new_lr_scheduler"}) {
    auto early = check("0: {params: [model.3], " + key + ": {a: 1}}\n1: {params: [model.2]}", *Net(), false, folder);
    CHECK(contains(early.error, "'" + key + "' is possible from phase 1 on"));
    CHECK(contains(early.error, early.mended));
    CHECK(!read_tree_file(early.mended).at("0").find(key));
  }
  CHECK(contains(check("0: {params: []}\n1: {params: [model.2]}").error, "nothing would be trained"));
}

TEST_CASE("parameters: what matches nothing, and what comes twice", "[schedule]") {
  auto none = check("0: {params: [model.3]}\n1: {params: [modle.2.weight]}");
  CHECK(contains(none.error, "phase 1: 'modle.2.weight' is no parameter"));
  CHECK(contains(none.error, "did you mean 'model.2.weight'?"));
  CHECK(contains(check("0: {params: ['model.(3']}").error, "cannot be used"));
  Folder folder;
  auto twice = check("0: {params: ['model.3.*', model.3.bias]}\n1: {params: [model.2.weight, model.3.weight]}", *Net(),
                     false, folder);
  CHECK(contains(twice.error, "thawed more than once: model.3.bias, model.3.weight"));
  Tree mended = read_tree_file(twice.mended);
  CHECK(mended.at("0").at("params").as_list().size() == 2);
  CHECK(mended.at("1").at("params").as_list().size() == 1);
  // Parameters in no phase and an empty phase are fine.
  auto sparse = check("0: {params: [model.3.bias]}\n1: {params: []}\n2: {params: [model.2.bias]}");
  CHECK(sparse.error == "");
}

TEST_CASE("limits: rules about the ends of phases", "[schedule]") {
  auto late = check(
      "0: {params: [model.3], max_transition_epoch: 9}\n1: {params: [model.2], max_transition_epoch: 5}\n"
      "2: {params: [model.1], max_transition_epoch: 5}\n3: {params: [model.0]}");
  CHECK(late.error == "");
  CHECK(late.said.count(log::Level::info, "may last a single epoch") == 1);
  CHECK(late.said.informed("phase 2 ends before epoch 5"));
  auto missing = check(
      "0: {params: [model.3], max_transition_epoch: 3}\n1: {params: [model.2]}\n2: {params: [model.1]}", *Net(), true);
  CHECK(contains(missing.error, "missing in phases 1, 2."));
  auto last = check("0: {params: [model.3]}\n1: {params: [model.2], max_transition_epoch: 4}");
  CHECK(last.said.warned("the last phase, 1, has max_transition_epoch 4"));
}

TEST_CASE("freeze: what was thawed earlier, by name or pattern, and again later", "[schedule]") {
  auto again = check("0: {params: [model.3]}\n1: {params: [model.2], freeze: ['.*']}\n2: {params: [model.3.bias]}");
  REQUIRE(again.error == "");
  CHECK(again.schedule.phases[1].freeze == Names{"model.3.weight", "model.3.bias"});
  CHECK(again.schedule.thawed_at(0) == Names{"model.3.weight", "model.3.bias"});
  CHECK(again.schedule.thawed_at(1) == Names{"model.2.weight", "model.2.bias"});
  CHECK(again.schedule.thawed_at(2) == Names{"model.2.weight", "model.2.bias", "model.3.bias"});
  CHECK(contains(check("0: {params: [model.3]}\n1: {params: [model.2], freeze: [model.1]}").error,
                 "of which no earlier phase thaws anything"));
  CHECK(contains(check("0: {params: [model.3]}\n1: {params: [model.3], freeze: [model.3]}").error, "both under"));
  CHECK(contains(check("0: {params: [model.3], freeze: [model.3]}").error, "from phase 1 on"));
}

namespace {

struct NormedImpl : torch::nn::Module {
  NormedImpl() {
    register_module("embed", torch::nn::Embedding(4, 3));
    auto enc = register_module("enc", torch::nn::Sequential());
    enc->push_back(torch::nn::Linear(3, 3));
    register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({3})));
    register_module("head", torch::nn::Linear(torch::nn::LinearOptions(3, 2).bias(true)));
  }
};
TORCH_MODULE(Normed);

struct RecurrentImpl : torch::nn::Module {
  RecurrentImpl() {
    register_module("rnn", torch::nn::LSTM(3, 4));
    register_module("head", torch::nn::Linear(4, 2));
  }
};
TORCH_MODULE(Recurrent);

struct ConvsImpl : torch::nn::Module {
  ConvsImpl() {
    auto test = register_module("test", std::make_shared<torch::nn::Module>());
    auto encoder = std::make_shared<torch::nn::Module>();
    auto first = std::make_shared<torch::nn::Module>();
    first->register_parameter("parent_param", torch::zeros({1}));
    for (int i = 0; i < 6; ++i) first->register_module("conv" + std::to_string(i), torch::nn::Conv1d(2, 2, 1));
    encoder->register_module("0", first);
    test->register_module("encoder", encoder);
  }
};
TORCH_MODULE(Convs);

}  // namespace

TEST_CASE("implicit schedule: pairs from the last parameter to the first", "[schedule]") {
  auto schedule = implicit_schedule(ModelParameters(*Normed()));
  REQUIRE(schedule.size() == 4);
  CHECK(schedule.phases[0].params == Names{"head.bias", "head.weight"});
  CHECK(schedule.phases[1].params == Names{"norm.bias", "norm.weight"});
  CHECK(schedule.phases[2].params == Names{"enc.0.bias", "enc.0.weight"});
  CHECK(schedule.phases[3].params == Names{"embed.weight"});
  auto recurrent = implicit_schedule(ModelParameters(*Recurrent()));
  REQUIRE(recurrent.size() == 3);
  CHECK(recurrent.phases[1].params == Names{"rnn.bias_hh_l0", "rnn.bias_ih_l0"});
  auto convs = implicit_schedule(ModelParameters(*Convs()));
  REQUIRE(convs.size() == 7);
  CHECK(convs.phases[6].params == Names{"test.encoder.0.parent_param"});
}

TEST_CASE("a schedule survives writing and reading", "[schedule]") {
  Folder folder;
  auto whole = check(kWhole).schedule;
  whole.phases[1].new_lr_scheduler = Tree::Map{{"lr_scheduler_init", Tree::Map{{"class_path", "StepLR"}}}};
  whole.phases[1].max_transition_step = 17;
  write_schedule(whole.to_tree(), folder.file("deep/er/out.yaml"));
  CHECK(read_schedule(load_schedule_source(folder.file("deep/er/out.yaml"), {}), {}) == whole);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path / "deep/er"))
    CHECK(entry.path().filename() == "out.yaml");  // nothing temporary is left
  CHECK(contains(error_of<CheckpointError>([&] { write_schedule(whole.to_tree(), "/proc/nowhere/out.yaml"); }),
                 "/proc/nowhere/out.yaml"));
  CHECK(class_name(*Net()) == "Net");
  CHECK(class_name(*torch::nn::Linear(1, 1)) == "Linear");
}

TEST_CASE("patterns: Python's dialect, from the start, in bounded time", "[schedule][regex]") {
  auto matches = [](const char* pattern, const std::string& text) {
    return PythonRegex(pattern).matches_start_of(text);
  };
  CHECK(matches("model.3", "model.30.weight"));
  CHECK(!matches("3.weight", "model.3.weight"));
  CHECK(matches("model\\.(0|1)\\.(weight|bias)", "model.1.bias"));
  CHECK(matches("enc\\.layer\\.([0-9]|1[0-1])\\.att.{0,11}q", "enc.layer.11.attention.q"));
  CHECK(matches("a{,3}b", "aab"));
  CHECK(matches("[]x]y", "]y"));
  CHECK(matches("[[:alpha:]]", ":]"));
  CHECK(matches("(?P<layer>\\d+)\\.w", "12.weight"));
  CHECK(matches("(?i)MODEL(?#any case)", "model"));
  CHECK(matches("(?!model\\.0)model", "model.1"));
  CHECK(!matches("(?!model\\.0)model", "model.0"));
  CHECK(matches("\\Amodel\\.3\\Z", "model.3"));
  CHECK(!matches("model.3$", "model.30"));
  CHECK(matches("a{x}", "a{x}"));
  for (const char* wrong : {"*", "a**", "(a", "a)", "[a", "(?<=a)b", "(a)\\1", "(?>a)", "a++", "\\q", "a{3,2}", "a\\",
                            "(?s)a", "a{99999}", "(a{500}){500}", "\\xz"})
    CHECK(error_of<ConfigError>([&] { PythonRegex(std::string(wrong)); }) != "");
  CHECK(error_of<ConfigError>([] { PythonRegex(std::string(2000, 'a')); }) != "");
  const std::string long_name(400, 'a');
  for (const char* evil : {"(a*)*b", "(a|a)*(a|aa)+c", "(a+a+)+y", "((a{0,99}){0,99})b"})
    CHECK(!matches(evil, long_name));
}
