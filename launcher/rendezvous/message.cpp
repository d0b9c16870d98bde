#include "launcher/rendezvous/message.h"

#include <climits>
#include <cmath>
#include <utility>

#include "launcher/os/visible.h"

namespace fabric::rendezvous {
namespace {

constexpr std::size_t kLongestText = 64 * 1024, kMostEntries = 65536, kMostAddresses = 64;
constexpr int kMostWorkers = 4096;

template <class T>
concept Record = requires(T value, struct Writer& writer) {
  value.fields(writer);
};

struct Writer {
  Tree tree = Tree(Tree::Map{});
  template <class T>
  void operator()(const char* name, const T& value) {
    tree.as_map().append(name, write(value));
  }
  template <class T>
  static Tree write(const T& value) {
    if constexpr (Record<T>) {
      Writer inner;
      const_cast<T&>(value).fields(inner);
      return std::move(inner.tree);
    } else {
      return Tree(value);
    }
  }
  template <class T>
  static Tree write(const std::vector<T>& values) {
    Tree::List list;
    for (const auto& value : values) list.push_back(write(value));
    return Tree(std::move(list));
  }
};

struct Reader {
  const Tree& tree;
  template <class T>
  void operator()(const char* name, T& value) {
    const auto* found = tree.find(name);
    if (!found) throw FrameError(std::string("a message lacks '") + name + "'");
    read(*found, value);
  }
  static void read(const Tree& from, bool& value) { value = from.as_bool(); }
  static void read(const Tree& from, long long& value) { value = from.as_int(); }
  // JSON as we read it knows NaN and infinity, of which no time can be made.
  static void read(const Tree& from, double& value) {
    value = from.as_double();
    if (!std::isfinite(value)) throw FrameError("a number of a message is none");
  }
  static void read(const Tree& from, int& value) {
    auto wide = from.as_int();
    if (wide < INT_MIN || wide > INT_MAX) throw FrameError("a number of a message is out of range");
    value = static_cast<int>(wide);
  }
  static void read(const Tree& from, std::string& value) {
    value = from.as_string();
    if (value.size() > kLongestText) throw FrameError("a text of a message is too long");
  }
  template <class T>
  static void read(const Tree& from, std::vector<T>& values) {
    const auto& list = from.as_list();
    if (list.size() > kMostEntries) throw FrameError("a list of a message is too long");
    values.resize(list.size());
    for (std::size_t i = 0; i < list.size(); ++i) read(list[i], values[i]);
  }
  template <Record T>
  static void read(const Tree& from, T& value) {
    if (!from.is_map()) throw FrameError("a part of a message is no map");
    Reader inner{from};
    value.fields(inner);
    check(value);
  }
  template <class T>
  static void check(const T&) {}
  static void check(const NodeInfo& node) {
    bool good = !node.id.empty() && node.id.size() <= 64 && node.host.size() <= 256 && node.local_size >= 1 &&
                node.local_size <= kMostWorkers && node.port >= 0 && node.port <= 65535 && node.wanted_rank >= -1 &&
                node.addresses.size() <= kMostAddresses;
    if (!good) throw FrameError("a node describes itself with values that cannot be");
  }
  static void check(const Start& start) {
    if (start.roster.nodes.empty() || start.master_port < 1 || start.master_port > 65535 || start.roster.round < 0)
      throw FrameError("a round without nodes or port");
  }
  static void check(const Ended& ended) {
    if (ended.code < 0 || ended.code > 255) throw FrameError("an exit code that cannot be");
    // A failure with code 0 would end the whole job as if all were well.
    if (ended.failed && (ended.code == 0 || ended.succeeded)) throw FrameError("a failure that is none");
  }
  static void check(const Leave& leave) {
    if (leave.signal < 1 || leave.signal > 64) throw FrameError("a signal that cannot be");
  }
  static void check(const Stop& stop) {
    if (stop.code < 0 || stop.code > 255) throw FrameError("an exit code that cannot be");
  }
  static void check(const Finish& finish) {
    bool has_failed = !finish.reason.empty() || !finish.cause.empty() || !finish.report.empty();
    if (finish.code < 0 || finish.code > 255 || (finish.code == 0 && has_failed))
      throw FrameError("an end that cannot be");
  }
};

template <std::size_t... Indices>
bool read_any(const std::string& type, const Tree& tree, Message& message, std::index_sequence<Indices...>) {
  auto try_one = [&]<class T>(std::in_place_type_t<T>) {
    if (type != T::kName) return false;
    T value;
    Reader::read(tree, value);
    message = std::move(value);
    return true;
  };
  return (try_one(std::in_place_type<std::variant_alternative_t<Indices, Message>>) || ...);
}

}  // namespace

Tree to_tree(const Message& message) {
  return std::visit(
      [](const auto& value) {
        auto tree = Writer::write(value);
        tree["type"] = value.kName;
        return tree;
      },
      message);
}

Message to_message(const Tree& tree) {
  try {
    const auto& type = tree.at("type").as_string();
    Message message;
    if (read_any(type, tree, message, std::make_index_sequence<std::variant_size_v<Message>>())) return message;
    throw FrameError("an unknown message");
  } catch (const MisuseError& error) {
    throw FrameError(error.what());
  }
}

std::string describe(const NodeInfo& node) {
  return visible(node.host) + " (launcher " + std::to_string(node.pid) + ")";
}

}  // namespace fabric::rendezvous
