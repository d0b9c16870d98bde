// What a pickle makes by calls although it is plain: ordered dicts, sets, sizes, devices, layouts, bytes.
#include <algorithm>
#include <array>
#include <string>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/torch/torch_host.h"

namespace fabric::checkpoint {
namespace {

using Id = PickleReader::Id;
using Kind = PickleReader::Kind;
using Node = PickleReader::Node;
using Arguments = std::vector<Id>;

Id make_dict(PickleReader& pickle, const Arguments& args) {
  Node out{.kind = Kind::dict};
  if (!args.empty()) {
    const Node& given = pickle[args[0]];
    if (given.kind == Kind::dict) {
      out.items = given.items;
    } else {  // pairs
      for (Id pair : given.items) {
        if (pickle[pair].items.size() != 2) wrong_pickle("makes a dict of something other than pairs");
        out.items.insert(out.items.end(), pickle[pair].items.begin(), pickle[pair].items.end());
      }
    }
  }
  return pickle.add(std::move(out));
}

Id make_list(PickleReader& pickle, const Arguments& args) {
  Node out{.kind = Kind::list};
  if (!args.empty()) {
    const Node& given = pickle[args[0]];
    if (given.kind != Kind::list && given.kind != Kind::tuple) wrong_pickle("makes a list of something else");
    out.items = given.items;
  }
  return pickle.add(std::move(out));
}

Id make_device(PickleReader& pickle, const Arguments& args) {
  std::string name;
  for (Id id : args) {
    const Node& part = pickle[id];
    if (part.kind == Kind::text)
      name += part.text;
    else if (part.kind == Kind::integer)
      name += ':' + std::to_string(part.integer);
    else
      wrong_pickle("names a device by something that is no text and no number");
  }
  return pickle.add({.kind = Kind::text, .text = pickle.keep(std::move(name))});
}

// torch.sparse_coo and its like, as text.
Id make_layout(PickleReader& pickle, const Arguments& args) {
  if (args.size() != 1 || pickle[args[0]].kind != Kind::text)
    wrong_pickle("names a layout by something that is no text");
  return args[0];
}

std::string latin1(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x80)
      out += static_cast<char>(c);
    else if ((c == 0xC2 || c == 0xC3) && i + 1 < text.size())
      out += static_cast<char>((c & 3) << 6 | (text[++i] & 0x3F));
    else
      wrong_pickle("makes bytes of text that holds other characters");
  }
  return out;
}

// Older protocols write bytes as text of the same code points, with the name of that encoding.
Id make_bytes(PickleReader& pickle, const Arguments& args) {
  if (args.empty()) return pickle.add({.kind = Kind::bytes});
  const Node& given = pickle[args[0]];
  if (args.size() > 2) wrong_pickle("makes bytes with too many arguments");
  if (args.size() == 2) {
    std::string encoding(pickle[args[1]].text.substr(0, 40));
    if (encoding != "latin1" && encoding != "latin-1")
      wrong_pickle("makes bytes of text in the encoding '" + encoding + "'; only latin1 is read");
  }
  if (given.kind == Kind::bytes) return args[0];
  if (given.kind != Kind::text) wrong_pickle("makes bytes of something that is no text");
  std::string bytes = latin1(given.text);
  return pickle.add({.kind = Kind::bytes, .text = pickle.keep(std::move(bytes))});
}

struct PlainCall {
  std::string_view name;
  Id (*make)(PickleReader&, const Arguments&);
};
constexpr std::array kPlainCalls{PlainCall{"collections.OrderedDict", make_dict},
                                 PlainCall{"collections.Counter", make_dict},
                                 PlainCall{"torch.Size", make_list},
                                 PlainCall{"builtins.set", make_list},
                                 PlainCall{"__builtin__.set", make_list},
                                 PlainCall{"builtins.frozenset", make_list},
                                 PlainCall{"__builtin__.frozenset", make_list},
                                 PlainCall{"torch.device", make_device},
                                 PlainCall{"torch.serialization._get_layout", make_layout},
                                 PlainCall{"_codecs.encode", make_bytes},
                                 PlainCall{"builtins.bytearray", make_bytes},
                                 PlainCall{"__builtin__.bytearray", make_bytes}};

}  // namespace

std::optional<Id> call_for_plain_value(PickleReader& pickle, const std::string& name, const Arguments& args) {
  auto found =
      std::find_if(kPlainCalls.begin(), kPlainCalls.end(), [&](const auto& call) { return call.name == name; });
  if (found == kPlainCalls.end()) return std::nullopt;
  return found->make(pickle, args);
}

bool makes_plain_value(std::string_view name) {
  return std::any_of(kPlainCalls.begin(), kPlainCalls.end(), [&](const auto& call) { return call.name == name; });
}

}  // namespace fabric::checkpoint
