#include <fabric/base/env_reader.h>

#include <charconv>
#include <cstdlib>

#include <fabric/base/error.h>

namespace fabric {
namespace {

class ProcessEnv : public EnvReader {
 public:
  std::optional<std::string> get(const std::string& name) const override {
    const char* value = std::getenv(name.c_str());
    return value ? std::optional<std::string>(value) : std::nullopt;
  }
  void set(const std::string& name, const std::string& value) override { setenv(name.c_str(), value.c_str(), 1); }
  void unset(const std::string& name) override { unsetenv(name.c_str()); }
};

}  // namespace

std::optional<int> EnvReader::get_int(const std::string& name, int low, int high) const {
  auto text = get(name);
  if (!text) return std::nullopt;
  int number = 0;
  auto [end, code] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (code != std::errc() || end != text->data() + text->size() || number < low || number > high)
    throw ConfigError("the environment variable " + name + " is '" + *text + "', but must be a whole number from " +
                      std::to_string(low) + " to " + std::to_string(high));
  return number;
}

int EnvReader::require_int(const std::string& name, const std::string& who) const {
  require(name, who);
  return *get_int(name);
}

std::string EnvReader::require(const std::string& name, const std::string& who) const {
  auto text = get(name);
  if (!text) throw ConfigError("the environment variable " + name + " is not set, but " + who + " needs it");
  return *text;
}

std::optional<std::string> MapEnv::get(const std::string& name) const {
  auto found = values_.find(name);
  return found == values_.end() ? std::nullopt : std::optional<std::string>(found->second);
}

std::shared_ptr<EnvReader> process_env() {
  // Never destroyed: what runs while the process exits asks as well.
  static const auto& reader = *new std::shared_ptr<EnvReader>(std::make_shared<ProcessEnv>());
  return reader;
}

}  // namespace fabric
