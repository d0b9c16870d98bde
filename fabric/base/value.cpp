#include <fabric/base/value.h>

#include <sstream>

namespace fabric {
namespace {

template <class From, class To>
To convert(const From& value, const std::string& path) {
  auto below = [&](const std::string& key) { return path.empty() ? key : path + "." + key; };
  return std::visit(
      [&](const auto& content) -> To {
        using Content = std::decay_t<decltype(content)>;
        if constexpr (std::is_same_v<Content, typename From::List>) {
          typename To::List list;
          for (std::size_t i = 0; i < content.size(); ++i)
            list.push_back(convert<From, To>(content[i], below(std::to_string(i))));
          return list;
        } else if constexpr (std::is_same_v<Content, typename From::Map>) {
          typename To::Map map;
          for (const auto& [key, item] : content) map[key] = convert<From, To>(item, below(key));
          return map;
        } else if constexpr (std::is_same_v<Content, at::Tensor>) {
          throw MisuseError("a tensor at '" + path + "' cannot be part of a tree of plain values");
        } else if constexpr (std::is_same_v<Content, std::monostate>) {
          return To{};
        } else {
          return To(content);
        }
      },
      value.variant());
}

void print(std::ostream& out, const Value& value) {
  if (value.is_null()) {
    out << "null";
  } else if (value.is_bool()) {
    out << (value.as_bool() ? "true" : "false");
  } else if (value.is_int()) {
    out << value.as_int();
  } else if (value.is_double()) {
    out << value.as_double();
  } else if (value.is_string()) {
    out << '"' << value.as_string() << '"';
  } else if (value.is<at::Tensor>()) {
    const auto& tensor = value.as<at::Tensor>();
    if (!tensor.defined()) {
      out << "Tensor undefined";
      return;
    }
    out << "Tensor" << tensor.sizes() << ' ' << tensor.scalar_type();
  } else if (value.is_list()) {
    const char* separator = "";
    out << '[';
    for (const auto& item : value.as_list()) {
      out << std::exchange(separator, ", ");
      print(out, item);
    }
    out << ']';
  } else {
    const char* separator = "";
    out << '{';
    for (const auto& [key, item] : value.as_map()) {
      out << std::exchange(separator, ", ") << key << ": ";
      print(out, item);
    }
    out << '}';
  }
}

}  // namespace

Tree to_tree(const Value& value) { return convert<Value, Tree>(value, ""); }
Value to_value(const Tree& tree) { return convert<Tree, Value>(tree, ""); }

std::string to_string(const Value& value) {
  std::ostringstream out;
  print(out, value);
  return out.str();
}

}  // namespace fabric
