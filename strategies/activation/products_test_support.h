#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>

#include <fabric/dispatch/operator_hooks.h>

namespace activation_test {

using Names = std::set<std::string>;

// Products that are executed, by the weight that they are made with.
struct ProductsByWeight : fabric::dispatch::Client {
  explicit ProductsByWeight(std::map<void*, std::string> names) : names(std::move(names)) {}
  void operator_called(fabric::dispatch::OperatorCall& call) override {
    if (call.op().schema().name() == "aten::mm")
      for (const auto& argument : call.arguments())
        if (auto found = names.find(argument.toTensor().data_ptr()); found != names.end()) ++executed[found->second];
    call.proceed();
  }
  Names executed_twice() const {
    Names twice;
    for (const auto& [name, count] : executed)
      if (count == 2) twice.insert(name);
    return twice;
  }
  std::map<void*, std::string> names;
  std::map<std::string, int> executed;
};

}  // namespace activation_test
