#include <fabric/plugins/loggers/tensorboard_logger.h>

#include <cstring>
#include <vector>

#include <fabric/base/env_reader.h>

#include "fabric/base/atomic_file_test_support.h"
#include "plugins/loggers/event_file.h"
#include "plugins/loggers/test_folder.h"
#include "tests/support/catch.h"

using fabric::TensorBoardLogger;
using fabric::Tree;

namespace {

// A reader of our own for protocol buffers: the fields of one message, in order.
struct Field {
  int number;
  std::uint64_t value;  // varints and the bits of fixed-width numbers
  std::string bytes;
};

std::uint64_t take(std::string_view& text, std::size_t n) {
  REQUIRE(text.size() >= n);
  std::uint64_t value = 0;
  std::memcpy(&value, text.data(), n);
  text.remove_prefix(n);
  return value;
}

std::uint64_t take_varint(std::string_view& text) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    auto byte = take(text, 1);
    value |= (byte & 0x7F) << shift;
    if (!(byte & 0x80)) return value;
  }
}

std::vector<Field> fields(std::string_view text) {
  std::vector<Field> all;
  while (!text.empty()) {
    auto key = take_varint(text);
    Field field{static_cast<int>(key >> 3), 0, ""};
    if ((key & 7) == 0) {
      field.value = take_varint(text);
    } else if ((key & 7) == 2) {
      auto size = take_varint(text);
      REQUIRE(text.size() >= size);
      field.bytes = text.substr(0, size);
      text.remove_prefix(size);
    } else {
      field.value = take(text, (key & 7) == 1 ? 8 : 4);
    }
    all.push_back(field);
  }
  return all;
}

Field field(const std::string& message, int number) {
  for (auto& found : fields(message))
    if (found.number == number) return found;
  return {-1, 0, ""};
}

std::uint32_t masked(const std::string& bytes) {
  auto crc = fabric::crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

// The events of the only file in the folder; checks every record's frame.
std::vector<std::string> events(const std::string& folder) {
  std::vector<std::string> all;
  std::vector<std::filesystem::path> files(std::filesystem::directory_iterator(folder), {});
  REQUIRE(files.size() == 1);
  REQUIRE(files[0].filename().string().rfind("events.out.tfevents.", 0) == 0);
  auto text = read_file(files[0]);
  std::string_view rest = text;
  while (!rest.empty()) {
    std::string length(rest.substr(0, 8));
    auto size = take(rest, 8);
    REQUIRE(take(rest, 4) == masked(length));
    REQUIRE(rest.size() >= size + 4);
    all.emplace_back(rest.substr(0, size));
    rest.remove_prefix(size);
    REQUIRE(take(rest, 4) == masked(all.back()));
  }
  return all;
}

std::string summary_value(const std::string& event) { return field(field(event, 5).bytes, 1).bytes; }
float simple_value(const std::string& event) {
  auto bits = static_cast<std::uint32_t>(field(summary_value(event), 2).value);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
std::string tag(const std::string& event) { return field(summary_value(event), 1).bytes; }

}  // namespace

TEST_CASE("The checksum is CRC-32C", "[tensorboard]") {
  CHECK(fabric::crc32c("123456789") == 0xE3069283u);
  CHECK(fabric::crc32c(std::string(32, '\0')) == 0x8A9136AAu);
  CHECK(fabric::crc32c("") == 0);
}

TEST_CASE("Scalars are written as events with their step", "[tensorboard]") {
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path, .sub_dir = "sub", .prefix = "p"});
  logger.log_metrics({{"loss", 0.5}, {"acc", 2}}, 7);
  logger.log_metrics({{"loss", 0.25}}, std::nullopt);
  logger.save();
  CHECK(logger.log_dir() == folder.path + "/fabric_logs/version_0/sub");
  auto all = events(logger.log_dir());
  REQUIRE(all.size() == 4);
  CHECK(field(all[0], 3).bytes == "brain.Event:2");
  CHECK(tag(all[1]) == "p-acc");
  CHECK(simple_value(all[1]) == 2);
  CHECK(field(all[1], 2).value == 7);
  CHECK(tag(all[2]) == "p-loss");
  CHECK(simple_value(all[2]) == 0.5f);
  CHECK(field(all[3], 2).value == 8);
}

TEST_CASE("Events are written when max_queue of them wait", "[tensorboard]") {
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path, .max_queue = 3, .flush_secs = 1e6});
  logger.log_metrics({{"a", 1}}, 0);
  CHECK(events(logger.log_dir()).empty());
  logger.log_metrics({{"a", 1}}, 1);
  CHECK(events(logger.log_dir()).size() == 3);
  logger.log_metrics({{"a", 1}}, 2);
  CHECK(events(logger.log_dir()).size() == 3);
  TestFolder other;
  TensorBoardLogger eager({.root_dir = other.path, .max_queue = 1000, .flush_secs = 0});
  eager.log_metrics({{"a", 1}}, 0);
  CHECK(events(eager.log_dir()).size() == 2);
  CHECK_THROWS_AS(TensorBoardLogger({.max_queue = 0}), fabric::ConfigError);
}

TEST_CASE("Events that the disk did not take are written later, and once", "[tensorboard]") {
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path, .max_queue = 1000, .flush_secs = 1e6});
  for (int step = 0; step < 20; ++step) logger.log_metrics({{"a", step}}, step);
  {
    FileSizeLimit limit(100);  // some whole events and a part of one
    CHECK_THROWS_WITH(logger.save(), Catch::Contains("events.out") && Catch::Contains("File too large"));
  }
  logger.save();
  auto all = events(logger.log_dir());
  REQUIRE(all.size() == 21);
  for (int step = 0; step < 20; ++step) CHECK(simple_value(all[step + 1]) == static_cast<float>(step));
  CHECK_THROWS_WITH(TensorBoardLogger({.flush_secs = -1.5}), Catch::Contains("given -1.5"));
}

TEST_CASE("A full disk costs no descriptor and no file for each call", "[tensorboard]") {
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path, .max_queue = 1, .flush_secs = 0});
  auto open_files = [] { return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}); };
  const auto before = open_files();
  {
    FileSizeLimit limit(10);
    for (int step = 0; step < 5; ++step)
      CHECK_THROWS_WITH(logger.log_metrics({{"a", step}}, step), Catch::Contains("File too large"));
  }
  CHECK(open_files() == before + 1);
  logger.save();
  auto all = events(logger.log_dir());  // of one file
  REQUIRE(all.size() == 6);
  for (int step = 0; step < 5; ++step) CHECK(simple_value(all[step + 1]) == static_cast<float>(step));
}

TEST_CASE("Hyperparameters are three summaries and a metric", "[tensorboard]") {
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path});
  logger.log_hyperparams(Tree::Map{{"lr", 0.5}, {"net", Tree::Map{{"name", "mlp"}, {"deep", true}}}});
  logger.finalize("success");
  auto all = events(logger.log_dir());
  REQUIRE(all.size() == 5);
  CHECK(tag(all[1]) == "hp_metric");
  CHECK(simple_value(all[1]) == -1);
  CHECK(tag(all[2]) == "_hparams_/experiment");
  CHECK(tag(all[3]) == "_hparams_/session_start_info");
  CHECK(tag(all[4]) == "_hparams_/session_end_info");
  auto plugin = field(field(summary_value(all[3]), 9).bytes, 1).bytes;
  CHECK(field(plugin, 1).bytes == "hparams");
  std::vector<std::string> names;
  for (const auto& entry : fields(field(field(plugin, 2).bytes, 3).bytes))
    if (entry.number == 1) names.push_back(field(entry.bytes, 1).bytes);
  CHECK(names == std::vector<std::string>{"lr", "net/name", "net/deep"});
}

TEST_CASE("Without the default metric there are only the summaries", "[tensorboard]") {
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path, .default_hp_metric = false});
  logger.log_hyperparams(Tree::Map{{"lr", 0.5}});
  logger.save();
  CHECK(events(logger.log_dir()).size() == 3);
}

TEST_CASE("Home and variables in the folder are expanded", "[tensorboard]") {
  TestFolder folder;
  auto env = fabric::process_env();
  env->set("FABRIC_TEST_LOGS", folder.path);
  CHECK(TensorBoardLogger({.root_dir = "$FABRIC_TEST_LOGS/a"}).root_dir() == folder.path + "/a");
  CHECK(TensorBoardLogger({.root_dir = "${FABRIC_TEST_LOGS}x"}).root_dir() == folder.path + "x");
  CHECK(TensorBoardLogger({.root_dir = "~/a"}).root_dir() == env->get_or("HOME", "~") + "/a");
  CHECK(TensorBoardLogger({.root_dir = "$FABRIC_NOT_SET/$"}).root_dir() == "$FABRIC_NOT_SET/$");
  CHECK(TensorBoardLogger({.root_dir = "${FABRIC_TEST_LOGS"}).root_dir() == "${FABRIC_TEST_LOGS");
  env->unset("FABRIC_TEST_LOGS");
}

TEST_CASE("The TensorBoard package reads it", "[tensorboard]") {
  auto python = fabric::process_env()->get("FABRIC_PEER_PYTHON");
  if (!python) {
    SUCCEED("set FABRIC_PEER_PYTHON to a Python with the package tensorboard");
    return;
  }
  TestFolder folder;
  TensorBoardLogger logger({.root_dir = folder.path});
  for (int step = 0; step < 100; ++step) logger.log_metrics({{"loss/train", 1.0 / (step + 1)}}, step);
  logger.log_text("note", "größer");
  logger.log_hyperparams(Tree::Map{{"lr", 0.5}, {"deep", true}, {"name", "mlp"}}, {{"best", 0.9}});
  logger.finalize("success");
  std::ofstream(folder.path + "/check.py") << R"(
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
events = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'tensors': 0}).Reload()
assert sorted(events.Tags()['scalars']) == ['best', 'loss/train'], events.Tags()
loss = events.Scalars('loss/train')
assert [e.step for e in loss] == list(range(100))
assert all(abs(e.value - 1 / (e.step + 1)) < 1e-7 for e in loss)
assert events.Tensors('note/text_summary')[0].tensor_proto.string_val[0].decode() == 'größer'
data = events.SummaryMetadata('_hparams_/session_start_info').plugin_data
parsed = plugin_data_pb2.HParamsPluginData.FromString(data.content)
hparams = parsed.session_start_info.hparams
assert data.plugin_name == 'hparams' and parsed.version == 0
assert hparams['lr'].number_value == 0.5 and hparams['deep'].bool_value and hparams['name'].string_value == 'mlp'
data = events.SummaryMetadata('_hparams_/experiment').plugin_data
experiment = plugin_data_pb2.HParamsPluginData.FromString(data.content).experiment
assert [(i.name, i.type) for i in experiment.hparam_infos] == [('lr', 3), ('deep', 2), ('name', 1)]
assert experiment.metric_infos[0].name.tag == 'best'
data = events.SummaryMetadata('_hparams_/session_end_info').plugin_data
assert plugin_data_pb2.HParamsPluginData.FromString(data.content).session_end_info.status == 1
)";
  auto command = "'" + *python + "' '" + folder.path + "/check.py' '" + logger.log_dir() + "' 2>&1";
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe);
  std::string output;
  for (int c; (c = fgetc(pipe)) != EOF;) output += static_cast<char>(c);
  INFO(output);
  CHECK(pclose(pipe) == 0);
}
