// Reads the pickled part of a file of torch.save, without Python and without running anything that the file names.
//
// Source: the format is that of Python's pickletools, protocols 2 to 5. It is a program for a machine with a stack, a
// list of marks and a memo. Each operation is one byte, then its arguments; operations are tried by family (numbers,
// texts, containers, memo, objects), and each case below carries the byte that pickletools documents.
//
// Invariants:
// - No class is looked up and nothing is called: names are compared with the few that tensors and ordered maps need.
// - Memory grows by at most a constant factor of the bytes read, whatever the file claims about lengths.
// - Values refer to each other by index into one table, so that a value that contains itself is found and refused.
#include "plugins/checkpoint_io/torch/pickle_reader.h"

#include <bit>
#include <cstdio>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/byte_cursor.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kGrowth = 16, kAlwaysFine = 4096;

[[noreturn]] void wrong(const std::string& why) { throw CheckpointCorrupt("the pickled part of the file " + why); }

void require_room(std::size_t values) {
  if (values >= kMostValues)
    throw CheckpointError("the file holds more than " + std::to_string(kMostValues) +
                          " values beside tensors; keep large data in tensors");
}

double big_endian_double(std::string_view bytes) {
  std::uint64_t bits = 0;
  for (unsigned char c : bytes) bits = bits << 8 | c;
  return std::bit_cast<double>(bits);
}

std::int64_t signed_integer(std::string_view bytes) {
  if (bytes.size() > 8)
    throw CheckpointError("the file holds an integer of more than 64 bits, which no checkpoint value can take");
  std::uint64_t bits = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) bits = bits << 8 | static_cast<unsigned char>(bytes[i]);
  const unsigned unused = 64 - 8 * static_cast<unsigned>(bytes.size());
  return unused == 64 ? 0 : static_cast<std::int64_t>(bits << unused) >> unused;
}

}  // namespace

class PickleReader::Machine {
 public:
  explicit Machine(PickleReader& reader) : reader_(reader), in_(reader.bytes_, "the pickled part of the file") {}

  Id run() {
    for (;;) {
      auto operation = in_.number<unsigned char>();
      if (operation == '.') {
        if (stack_.size() != 1 || !marks_.empty()) wrong("leaves more or less than one value");
        reader_.length_ = in_.position();
        return stack_.back();
      }
      if (!number(operation) && !text(operation) && !container(operation) && !memo(operation) && !object(operation)) {
        char code[8];
        std::snprintf(code, sizeof code, "0x%02x", operation);
        wrong(std::string("uses the operation ") + code + " at byte " + std::to_string(in_.position() - 1) +
              ", which no state dict needs");
      }
    }
  }

 private:
  // --- the stack
  void push(Node node) { stack_.push_back(reader_.add(std::move(node))); }
  Id pop() {
    if (stack_.size() <= floor()) wrong("takes from an empty stack");
    Id top = stack_.back();
    stack_.pop_back();
    return top;
  }
  Node& top() {
    if (stack_.size() <= floor()) wrong("takes from an empty stack");
    return reader_.nodes_[stack_.back()];
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<Id> pop_to_mark() {
    if (marks_.empty()) wrong("closes a group that was never opened");
    std::vector<Id> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }

  // --- operations, by what they make; each returns false for those of another group
  bool number(unsigned char operation) {
    switch (operation) {
      case 'N':
        push({});
        return true;
      case 0x88:
        push({.kind = Kind::boolean, .integer = 1});
        return true;
      case 0x89:
        push({.kind = Kind::boolean});
        return true;
      case 'K':
        return integer(in_.number<std::uint8_t>());
      case 'M':
        return integer(in_.number<std::uint16_t>());
      case 'J':
        return integer(in_.number<std::int32_t>());
      case 0x8a:
        return integer(signed_integer(in_.take(in_.number<std::uint8_t>())));
      case 0x8b:
        return integer(signed_integer(in_.take(in_.number<std::uint32_t>())));
      case 'G':
        push({.kind = Kind::real, .real = big_endian_double(in_.take(8))});
        return true;
      default:
        return false;
    }
  }
  bool integer(std::int64_t value) {
    push({.kind = Kind::integer, .integer = value});
    return true;
  }

  bool text(unsigned char operation) {
    switch (operation) {
      case 'X':
        return text(Kind::text, in_.number<std::uint32_t>());
      case 0x8c:
        return text(Kind::text, in_.number<std::uint8_t>());
      case 0x8d:
        return text(Kind::text, in_.number<std::uint64_t>());
      case 'U':
        return text(Kind::text, in_.number<std::uint8_t>());  // strings of Python 2
      case 'T':
        return text(Kind::text, in_.number<std::uint32_t>());
      case 'C':
        return text(Kind::bytes, in_.number<std::uint8_t>());
      case 'B':
        return text(Kind::bytes, in_.number<std::uint32_t>());
      case 0x8e:
        return text(Kind::bytes, in_.number<std::uint64_t>());
      case 0x96:
        return text(Kind::bytes, in_.number<std::uint64_t>());
      default:
        return false;
    }
  }
  bool text(Kind kind, std::uint64_t length) {
    push({.kind = kind, .text = in_.take(length)});
    return true;
  }

  bool container(unsigned char operation) {
    switch (operation) {
      case '(':
        marks_.push_back(stack_.size());
        return true;
      case ')':
        push({.kind = Kind::tuple});
        return true;
      case ']':
        push({.kind = Kind::list});
        return true;
      case 0x8f:
        push({.kind = Kind::list});
        return true;  // a set
      case '}':
        push({.kind = Kind::dict});
        return true;
      case 't':
        return group(Kind::tuple);
      case 'l':
        return group(Kind::list);
      case 0x91:
        return group(Kind::list);  // a frozen set
      case 'd':
        return group(Kind::dict);
      case 0x85:
        return tuple(1);
      case 0x86:
        return tuple(2);
      case 0x87:
        return tuple(3);
      case 'a':
        return append({pop()}, Kind::list);
      case 'e':
      case 0x90:
        return append(pop_to_mark(), Kind::list);
      case 'u':
        return append(pop_to_mark(), Kind::dict);
      case 's': {
        Id value = pop();
        Id key = pop();
        return append({key, value}, Kind::dict);
      }
      case '0':
        pop();
        return true;
      case '1':
        pop_to_mark();
        return true;
      default:
        return false;
    }
  }
  bool group(Kind kind) {
    std::vector<Id> items = pop_to_mark();
    if (kind == Kind::dict && items.size() % 2 != 0) wrong("has a key without a value");
    push({.kind = kind, .items = std::move(items)});
    return true;
  }
  bool tuple(int count) {
    std::vector<Id> items(static_cast<std::size_t>(count));
    for (int i = count; i-- > 0;) items[static_cast<std::size_t>(i)] = pop();
    push({.kind = Kind::tuple, .items = std::move(items)});
    return true;
  }
  bool append(const std::vector<Id>& items, Kind kind) {
    Node& target = top();
    if (target.kind == Kind::foreign) return true;
    if (target.kind != kind)
      wrong(std::string("adds items to something that is no ") + (kind == Kind::dict ? "dict" : "list"));
    if (kind == Kind::dict && items.size() % 2 != 0) wrong("has a key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
    return true;
  }

  bool memo(unsigned char operation) {
    switch (operation) {
      case 'q':
        return remember(in_.number<std::uint8_t>());
      case 'r':
        return remember(in_.number<std::uint32_t>());
      case 0x94:
        return remember(memo_.size());
      case 'h':
        return recall(in_.number<std::uint8_t>());
      case 'j':
        return recall(in_.number<std::uint32_t>());
      case 0x80:
        if (auto version = in_.number<std::uint8_t>(); version > 5)
          wrong("has the unknown protocol " + std::to_string(version));
        return true;
      case 0x95:
        in_.take(8);
        return true;  // the length of a frame: no more than a hint
      default:
        return false;
    }
  }
  bool remember(std::uint64_t index) {
    if (stack_.size() <= floor()) wrong("takes from an empty stack");
    require_room(memo_.size());
    memo_[index] = stack_.back();
    return true;
  }
  bool recall(std::uint64_t index) {
    auto found = memo_.find(index);
    if (found == memo_.end()) wrong("recalls something that it never stored");
    stack_.push_back(found->second);
    return true;
  }

  bool object(unsigned char operation) {
    switch (operation) {
      case 'c': {
        auto module = in_.line();
        return global(module, in_.line());
      }
      case 0x93: {
        Id name = pop();
        Id module = pop();
        if (reader_[name].kind != Kind::text || reader_[module].kind != Kind::text)
          wrong("names a class by something that is no text");
        return global(reader_[module].text, reader_[name].text);
      }
      case 'R':
      case 0x81:
        return call();
      case 0x92:
        return call_with_names();
      case 'b':
        return build();
      case 'Q':
        stack_.push_back(reader_.host_.persistent(reader_, pop()));
        return true;
      default:
        return false;
    }
  }
  bool global(std::string_view module, std::string_view name) {
    auto full = reader_.keep(std::string(module) + "." + std::string(name));
    push({.kind = reader_.host_.allows(std::string(full)) ? Kind::global : Kind::foreign, .text = full});
    return true;
  }
  bool call() {
    Id arguments = pop();
    Id function = pop();
    if (reader_[function].kind == Kind::foreign) {
      stack_.push_back(function);
      return true;
    }
    if (reader_[function].kind != Kind::global) wrong("calls something that is no class");
    if (reader_[arguments].kind != Kind::tuple) wrong("calls a class without a list of arguments");
    stack_.push_back(reader_.host_.call(reader_, std::string(reader_[function].text), arguments));
    return true;
  }
  // Arguments by name, which no class takes that is rebuilt here.
  bool call_with_names() {
    const bool named = !reader_[pop()].items.empty();
    if (named && (stack_.size() < floor() + 2 || reader_[stack_[stack_.size() - 2]].kind != Kind::foreign))
      wrong("calls a class with arguments by name");
    return call();
  }
  // Attributes are what a record is made of. Set on an ordered dict (`_metadata` of a module's state) or on a tensor
  // they carry nothing that is kept.
  bool build() {
    Id attributes = pop();
    Kind kind = top().kind;
    if (kind == Kind::record) {
      reader_.spend(1);
      top().items.assign(1, attributes);
      return true;
    }
    if (kind != Kind::dict && kind != Kind::object && kind != Kind::foreign)
      wrong("sets attributes of something that has none");
    return true;
  }

  PickleReader& reader_;
  ByteCursor in_;
  std::vector<Id> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, Id> memo_;
};

PickleReader::PickleReader(std::string_view bytes, PickleHost& host)
    : bytes_(bytes), host_(host), budget_(kGrowth * bytes.size() + kAlwaysFine) {}

PickleReader::Id PickleReader::read() { return Machine(*this).run(); }

void PickleReader::spend(std::size_t amount) {
  if (amount > budget_) wrong("grows far beyond its size");
  budget_ -= amount;
}

std::string_view PickleReader::keep(std::string text) {
  spend(text.size());
  return kept_.emplace_back(std::move(text));
}

PickleReader::Id PickleReader::add(Node node) {
  spend(node.items.size());
  require_room(nodes_.size());
  nodes_.push_back(std::move(node));
  return static_cast<Id>(nodes_.size() - 1);
}

PickleReader::Id PickleReader::add_object(std::int64_t number) {
  return add({.kind = Kind::object, .integer = number});
}

}  // namespace fabric::checkpoint
