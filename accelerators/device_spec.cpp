#include <fabric/accelerators/accelerator.h>

namespace fabric {
namespace {

std::string text_of(const int* begin, const int* end) {
  if (begin == end) return "[]";
  std::string text;
  for (const int* index = begin; index != end; ++index) {
    if (index != begin) text += ',';
    text += std::to_string(*index);
  }
  return end - begin == 1 ? text + "," : text;
}

std::string text_of(const std::vector<int>& indices) {
  return text_of(indices.data(), indices.data() + indices.size());
}

[[noreturn]] void refuse(const std::string& given) {
  throw ConfigError("devices is " + given +
                    ": write a number of devices (2), a list of indices ([0, 2] or \"0,2\"), -1 for all, or \"auto\"");
}

int whole_number(const Tree& tree) {
  if (!tree.is_int()) refuse("a list with " + std::string(tree.kind()) + " in it");
  auto number = tree.as_int();
  if (number != static_cast<int>(number)) refuse(std::to_string(number));
  return static_cast<int>(number);
}

}  // namespace

DeviceSpec::DeviceSpec(std::initializer_list<int> indices) : text_(text_of(indices.begin(), indices.end())) {}
DeviceSpec::DeviceSpec(const std::vector<int>& indices) : text_(text_of(indices)) {}

DeviceSpec DeviceSpec::from_tree(const Tree& tree) {
  if (tree.is_null()) return {};
  if (tree.is_string()) return DeviceSpec(tree.as_string());
  if (tree.is_int()) {
    if (tree.as_int() != static_cast<int>(tree.as_int())) refuse(std::to_string(tree.as_int()));
    return DeviceSpec(static_cast<int>(tree.as_int()));
  }
  if (!tree.is_list()) refuse(tree.kind());
  std::vector<int> indices;
  for (const auto& item : tree.as_list()) indices.push_back(whole_number(item));
  return DeviceSpec(indices);
}

Tree DeviceSpec::to_tree() const {
  if (is_number_) return std::stoll(text_);
  return text_;
}

}  // namespace fabric
