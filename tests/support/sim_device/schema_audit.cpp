// The order checker has to know what an operator writes, and takes it from the schema. Where a kernel writes more, an
// error would go unseen; so all operators are tried. Arguments come from a few recipes for shapes and switches: most
// operators take one of them, and what writes an argument does so with the smallest.
#include "tests/support/sim_device/schema_audit.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <set>
#include <sstream>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace sim {
namespace {

using c10::IValue;

struct Recipe {
  std::vector<std::int64_t> first, others;  // shapes of the first tensor and of the rest
  bool flag;                                // all switches
  at::ScalarType others_type = at::kFloat;
};

const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all{
      {{4, 4}, {4, 4}, true},
      {{4, 4}, {4, 4}, false},
      {{2, 4, 4, 4}, {4}, true},
      {{2, 4, 4, 4}, {4}, false},
      {{4}, {4}, true},
      {{2, 4, 4, 4}, {2, 4, 4, 4}, true},
      {{4, 4}, {4}, true, at::kLong},
      {{4, 4}, {4, 4}, true, at::kLong},
      {{4, 4}, {}, true},
  };
  return all;
}

at::Tensor make_tensor(const Recipe& recipe, bool is_first) {
  const auto& shape = is_first ? recipe.first : recipe.others;
  if (!is_first && recipe.others_type == at::kLong) return at::ones(shape, at::kLong);
  return at::linspace(0.1, 0.9, c10::multiply_integers(shape)).view(shape);
}

// Nothing where a type is not known here.
std::optional<IValue> make_argument(const c10::TypePtr& type, const Recipe& recipe, bool& is_first) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return make_tensor(recipe, std::exchange(is_first, false));
    case c10::TypeKind::OptionalType:
      // Tensors that may be left out are what hides such writes; other options are left out.
      if (type->containedType(0)->kind() != c10::TypeKind::TensorType) return IValue();
      return make_tensor(recipe, false);
    case c10::TypeKind::ListType:
      if (type->containedType(0)->kind() == c10::TypeKind::TensorType)
        return IValue(std::vector<at::Tensor>{make_tensor(recipe, true), make_tensor(recipe, true)});
      if (type->containedType(0)->kind() == c10::TypeKind::IntType) return IValue(std::vector<std::int64_t>{2, 2});
      if (type->containedType(0)->kind() == c10::TypeKind::SymIntType) return IValue(std::vector<std::int64_t>{2, 2});
      if (type->containedType(0)->kind() == c10::TypeKind::BoolType) return IValue(std::vector<bool>{true, true, true});
      return std::nullopt;
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return IValue(std::int64_t{1});
    case c10::TypeKind::FloatType:
      return IValue(0.5);
    case c10::TypeKind::NumberType:
      return IValue(1.0);
    case c10::TypeKind::BoolType:
      return IValue(recipe.flag);
    default:
      return std::nullopt;
  }
}

std::optional<std::vector<IValue>> make_arguments(const c10::FunctionSchema& schema, const Recipe& recipe) {
  std::vector<IValue> made;
  bool is_first = true;
  for (const auto& argument : schema.arguments()) {
    bool is_tensor =
        argument.type()->kind() == c10::TypeKind::OptionalType || argument.type()->kind() == c10::TypeKind::TensorType;
    if (argument.default_value() && !is_tensor && argument.type()->kind() != c10::TypeKind::BoolType) {
      made.push_back(*argument.default_value());
      continue;
    }
    auto value = make_argument(argument.type(), recipe, is_first);
    if (!value) return std::nullopt;
    made.push_back(*std::move(value));
  }
  return made;
}

std::vector<at::Tensor> tensors_of(const IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  if (value.isTensorList()) return value.toTensorVector();
  return {};
}

std::string bytes_of_all(const IValue& value) {
  std::string bytes;
  for (const auto& tensor : tensors_of(value))
    bytes.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  return bytes;
}

// Names of the arguments that one run changed against the schema's word; nothing when it did not run.
std::optional<std::vector<std::string>> run(const c10::OperatorHandle& op, const Recipe& recipe) {
  const auto& schema = op.schema();
  auto arguments = make_arguments(schema, recipe);
  if (!arguments) return std::nullopt;
  std::vector<std::string> before;
  for (const auto& argument : *arguments) before.push_back(bytes_of_all(argument));
  torch::jit::Stack stack = *arguments;
  try {
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  } catch (const std::exception&) {
    return std::nullopt;
  }
  std::vector<std::string> changed;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if ((!alias || !alias->isWrite()) && bytes_of_all((*arguments)[i]) != before[i])
      changed.push_back(schema.arguments()[i].name());
  }
  return changed;
}

std::vector<c10::OperatorHandle> operators() {
  std::vector<c10::OperatorHandle> found;
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    auto op = c10::Dispatcher::singleton().findOp(name);
    if (op && name.getNamespace() == "aten" && op->hasSchema() && op->hasKernelForDispatchKey(c10::DispatchKey::CPU))
      found.push_back(*op);
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return c10::toString(a.operator_name()) < c10::toString(b.operator_name());
  });
  return found;
}

void write_line(int to, const std::string& line) {
  if (write(to, (line + "\n").c_str(), line.size() + 1) < 0) _exit(1);
}

// In a process of its own: "at N" before each operator, "ran" and "wrote NAME ARGUMENT" after it.
[[noreturn]] void audit_from(const std::vector<c10::OperatorHandle>& all, std::size_t first, int to) {
  rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  int nowhere = open("/dev/null", O_WRONLY);
  dup2(nowhere, 2);
  for (int signal : {SIGSEGV, SIGFPE, SIGABRT, SIGBUS}) ::signal(signal, SIG_DFL);
  at::set_num_threads(1);
  for (std::size_t i = first; i < all.size(); ++i) {
    write_line(to, "at " + std::to_string(i));
    alarm(5);
    bool ran = false;
    std::set<std::string> changed;
    for (const auto& recipe : recipes()) {
      auto found = run(all[i], recipe);
      ran |= found.has_value();
      if (found) changed.insert(found->begin(), found->end());
    }
    if (ran) write_line(to, "ran");
    for (const auto& argument : changed)
      write_line(to, "wrote " + c10::toString(all[i].operator_name()) + " " + argument);
  }
  _exit(0);
}

std::string output_of(const std::vector<c10::OperatorHandle>& all, std::size_t first) {
  int ends[2];
  TORCH_CHECK(pipe(ends) == 0);
  std::cout.flush();
  std::fflush(stdout);
  pid_t child = fork();
  if (child == 0) audit_from(all, first, ends[1]);
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<std::size_t>(n));
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return text;
}

}  // namespace

SchemaAudit audit_schemas() {
  auto all = operators();
  SchemaAudit audit{static_cast<int>(all.size()), 0, {}};
  for (std::size_t next = 0; next < all.size();) {
    std::istringstream lines(output_of(all, next));
    std::size_t reached = next;
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("at ")) reached = std::stoul(line.substr(3));
      if (line == "ran") ++audit.ran;
      if (line.starts_with("wrote ")) audit.unadmitted.push_back(line.substr(6));
    }
    next = reached + 1;  // beyond the one that did not come back, or the last
  }
  std::sort(audit.unadmitted.begin(), audit.unadmitted.end());
  return audit;
}

}  // namespace sim
