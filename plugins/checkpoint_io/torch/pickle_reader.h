#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fabric::checkpoint {

/// Nodes and notes that a pickle may make, as many as a safetensors header may have values: each takes 64 bytes of
/// memory, of the file perhaps one.
inline constexpr std::size_t kMostValues = std::size_t{8} << 20;
inline constexpr std::size_t kMostPickleBytes = std::size_t{64} << 20;

/// What a pickle asks for besides plain data: classes to call and objects stored elsewhere.
class PickleReader;
class PickleHost {
 public:
  using Id = std::uint32_t;
  virtual ~PickleHost() = default;
  /// True when "module.name" is on the closed list of what may be called. False makes a `foreign` node of it and of all
  /// that is made by it, so that what lies beside it can be read; or it throws.
  virtual bool allows(const std::string& name) = 0;
  /// The value of name(*arguments), a tuple. Nothing of Python is ever run.
  virtual Id call(PickleReader& pickle, const std::string& name, Id arguments) = 0;
  virtual Id persistent(PickleReader& pickle, Id id) = 0;
};

/// Runs the stack machine of Python's pickle format (the operations that plain data need of protocols 2 to 5, as
/// Python's Lib/pickletools.py describes them) into an arena of nodes. Values lie on a stack; a mark on it begins a
/// group, whose end makes one value of all above the mark; numbered notes (the memo) recall values that were made
/// before, so that nodes may be shared and may even contain themselves. Classes are names, and calling one asks the
/// host. Throws CheckpointCorrupt for damaged bytes, CheckpointError for more than kMostValues.
class PickleReader {
 public:
  using Id = PickleHost::Id;
  /// global: a class that the host allows; object: what the host made; record: an object of a class that the host takes
  /// as plain data; foreign: what only Python could make.
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    real,
    text,
    bytes,
    list,
    tuple,
    dict,
    global,
    object,
    record,
    foreign
  };
  struct Node {
    Kind kind = Kind::none;
    std::int64_t integer = 0;  // booleans too; for objects the host's own number
    double real = 0;
    std::string_view text;  // for globals, records and foreign ones "module.name"
    std::vector<Id> items;  // dicts: keys and values in turn; records: their attributes as one node, if they have any
  };

  PickleReader(std::string_view bytes, PickleHost& host);
  /// Reads to the end and returns the result.
  Id read();
  /// How many bytes that took.
  std::size_t length() const { return length_; }

  const Node& operator[](Id id) const { return nodes_[id]; }
  Id add(Node node);
  Id add_object(std::int64_t number);
  std::string_view keep(std::string text);

 private:
  class Machine;
  void spend(std::size_t amount);
  std::string_view bytes_;
  PickleHost& host_;
  std::vector<Node> nodes_;
  std::deque<std::string> kept_;
  std::size_t length_ = 0;
  std::size_t budget_;  // what nodes may hold in all, so that copies of copies cannot grow without bound
};

}  // namespace fabric::checkpoint
