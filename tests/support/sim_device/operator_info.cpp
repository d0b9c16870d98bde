#include "tests/support/sim_device/operator_info.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

namespace sim {
namespace {

bool is_one_of(const std::string& word, std::initializer_list<const char*> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Those that take a list of indices or lengths from the host, as CUDA's do.
bool takes_host_tensors(const std::string& name) {
  return name.starts_with("aten::index") || name.starts_with("aten::_index_put_impl_") ||
         is_one_of(name, {"aten::_ctc_loss.Tensor", "aten::_pack_padded_sequence", "aten::set_.source_Tensor"});
}

void read_arguments(const c10::FunctionSchema& schema, OperatorInfo& info) {
  std::vector<std::string> unadmitted;
  for (const auto& [op, names] : unadmitted_writes())
    if (op == info.name) unadmitted = names;
  const auto& arguments = schema.arguments();
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = arguments[i].alias_info();
    bool hidden = std::find(unadmitted.begin(), unadmitted.end(), arguments[i].name()) != unadmitted.end();
    info.writes.push_back((alias && alias->isWrite()) || hidden);
    if (arguments[i].type()->str().starts_with("Generator")) info.generator = static_cast<int>(i);
  }
}

void read_results(const c10::FunctionSchema& schema, OperatorInfo& info) {
  bool mutates = std::any_of(schema.arguments().begin(), schema.arguments().end(), [](const c10::Argument& argument) {
    return argument.alias_info() && argument.alias_info()->isWrite();
  });
  for (const auto& result : schema.returns()) {
    int same = -1;
    const auto* alias = result.alias_info();
    if (alias && alias->isWrite())
      for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
        const auto* given = schema.arguments()[i].alias_info();
        if (given && given->isWrite() && *given == *alias) same = static_cast<int>(i);
      }
    info.result_is_argument.push_back(same);
    if (alias && !alias->isWrite() && !mutates) info.is_view = true;
    auto type = result.type()->str();
    if (is_one_of(type, {"bool", "int", "float"}) || type.starts_with("Scalar")) info.gives_number = true;
  }
}

OperatorInfo read_schema(const c10::OperatorHandle& op) {
  const auto& schema = op.schema();
  OperatorInfo info;
  info.name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  read_arguments(schema, info);
  read_results(schema, info);
  info.draws_from_default = info.generator < 0 && op.hasTag(at::Tag::nondeterministic_seeded);
  info.waits_for_shape = op.hasTag(at::Tag::dynamic_output_shape) && !info.is_view;
  info.takes_host_tensors = takes_host_tensors(info.name);
  return info;
}

}  // namespace

const OperatorInfo& OperatorInfo::of(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  static auto* known = new std::unordered_map<const c10::FunctionSchema*, OperatorInfo>;
  std::lock_guard lock(mutex);
  auto found = known->find(&op.schema());
  if (found == known->end()) found = known->emplace(&op.schema(), read_schema(op)).first;
  return found->second;
}

const std::vector<std::pair<std::string, std::vector<std::string>>>& unadmitted_writes() {
  static const std::vector<std::pair<std::string, std::vector<std::string>>> all{
      {"aten::native_batch_norm", {"running_mean", "running_var"}},
      {"aten::native_batch_norm.out", {"running_mean", "running_var"}},
      {"aten::batch_norm_update_stats", {"running_mean", "running_var"}},
  };
  return all;
}

}  // namespace sim
