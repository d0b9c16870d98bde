#include <map>
#include <string>
#include <vector>

#include <fabric/fabric.h>
#include <fabric/plugins/loggers/registry.h>
#include <fabric/strategies/registry.h>

namespace fabric {
namespace {

std::string one_of(const std::string& what, const std::vector<std::string>& names, const std::string& more = "") {
  std::string text = what + ": " + more;
  for (const auto& name : names) text += (text.ends_with(": ") ? "" : ", ") + name;
  return text;
}

// With the names that are registered by then: a program's own among them, when it registers them before it parses.
std::map<std::string, std::string> help_texts() {
  return {{"accelerator", one_of("kind of device", registered_accelerators(), "auto")},
          {"strategy", one_of("how the work is spread", StrategyRegistry::instance().available_strategies(), "auto")},
          {"devices", "devices per node: auto, a number, -1 (all), or indices such as 0,2"},
          {"num_nodes", "machines of the job"},
          {"precision", one_of("number format", available_precisions()) + "; empty: 32-true"},
          {"environment", one_of("who started the ranks", available_environments()) + "; empty: found out"},
          {"checkpoint_io", one_of("format of checkpoints", available_checkpoint_ios())},
          {"loggers", one_of("where metrics go", available_loggers())},
          {"float32_matmul_precision",
           one_of("how exactly float32 matrices are multiplied", {"highest", "high", "medium"})}};
}

}  // namespace

const char* detail::setting_help(const char* field) {
  static const auto texts = help_texts();
  auto found = texts.find(field);
  return found == texts.end() ? "" : found->second.c_str();
}

}  // namespace fabric
