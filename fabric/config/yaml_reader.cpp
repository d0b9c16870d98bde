#include <sstream>
#include <unordered_map>
#include <unordered_set>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <fabric/base/error.h>
#include <fabric/base/tree_io.h>

#include "fabric/config/scalar_internal.h"

namespace fabric {
namespace {

// What a few bytes of aliases may grow into.
constexpr std::size_t kMostAliased = std::size_t{1} << 20;
constexpr std::size_t kMostBytes = std::size_t{16} << 20;
// An anchor's value is kept a second time.
constexpr std::size_t kMostAnchored = std::size_t{1} << 20;
// yaml-cpp keeps all tokens of a collection in brackets, a quarter of a kilobyte each, until it has seen its end.
constexpr std::size_t kMostFlowMarks = std::size_t{1} << 18;

std::size_t cost_of(const Tree& tree) {
  std::size_t cost = 1;
  if (tree.is_string()) cost += tree.as_string().size();
  if (tree.is_list())
    for (const auto& item : tree.as_list()) cost += cost_of(item);
  if (tree.is_map())
    for (const auto& [key, item] : tree.as_map()) cost += key.size() + cost_of(item);
  return cost;
}

int height_of(const Tree& tree) {
  int height = 0;
  if (tree.is_list())
    for (const auto& item : tree.as_list()) height = std::max(height, 1 + height_of(item));
  if (tree.is_map())
    for (const auto& [key, item] : tree.as_map()) height = std::max(height, 1 + height_of(item));
  return height;
}

// Builds a tree from events and not from YAML::Node, which lets keys come twice and knows no limits.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& source, const ReadLimits& limits, TreeLines* lines)
      : source_(source), limits_(limits), lines_(lines) {}
  Tree take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (std::exchange(started_, true)) fail(mark, "a second document; one file holds one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (wants_key()) fail(mark, "a key must be text");
    begin_value(mark);
    end_value({}, anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (wants_key()) fail(mark, "a key cannot be an alias");
    auto found = anchors_.find(anchor);
    if (found == anchors_.end()) fail(mark, "an alias inside of what it names");
    aliased_ += found->second.cost;
    if (aliased_ > kMostAliased) fail(mark, "aliases expand to too much");
    if (static_cast<int>(frames_.size()) + found->second.height > limits_.depth) fail_depth(mark);
    begin_value(mark);
    end_value(found->second.tree, 0);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    const bool plain = tag == "?" || tag.empty();
    if (wants_key()) return begin_key(mark, text, plain);
    begin_value(mark);
    if (plain) return end_value(detail::resolve_plain(text), anchor);
    if (tag == "!" || tag == "tag:yaml.org,2002:str") return end_value(text, anchor);
    for (const char* kind : {"int", "float", "bool", "null"})
      if (tag == std::string("tag:yaml.org,2002:") + kind) return end_value(detail::resolve_plain(text), anchor);
    fail_tag(mark, tag);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin_collection(mark, tag, "tag:yaml.org,2002:seq", anchor, false);
  }
  void OnSequenceEnd() override { end_collection(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin_collection(mark, tag, "tag:yaml.org,2002:map", anchor, true);
  }
  void OnMapEnd() override { end_collection(); }

 private:
  struct Frame {
    bool is_map = false;
    bool has_key = false;
    YAML::anchor_t anchor = 0;
    std::string path;
    std::string key;
    int key_line = 0;
    std::unordered_set<std::string> keys;
    Tree::Map::Entries entries;
    Tree::List items;
  };
  struct Anchor {
    Tree tree;
    std::size_t cost;
    int height;
  };

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what) const {
    throw ConfigError(source_ + ":" + std::to_string(mark.line + 1) + ": " + what);
  }
  [[noreturn]] void fail_depth(const YAML::Mark& mark) const {
    fail(mark, "nested deeper than " + std::to_string(limits_.depth) + " levels");
  }
  [[noreturn]] void fail_tag(const YAML::Mark& mark, const std::string& tag) const {
    fail(mark, "the tag " + detail::shown(tag) +
                   " is not supported; only !!str, !!int, !!float, !!bool, !!null, !!seq and !!map are");
  }

  bool wants_key() const { return !frames_.empty() && frames_.back().is_map && !frames_.back().has_key; }

  void begin_key(const YAML::Mark& mark, const std::string& key, bool plain) {
    if (plain && key == "<<") fail(mark, "merge keys (<<) are not supported; write the entries out");
    Frame& frame = frames_.back();
    if (!frame.keys.insert(key).second) fail(mark, "the key " + detail::shown(key) + " is given twice");
    frame.key = key;
    frame.key_line = mark.line + 1;
    frame.has_key = true;
  }

  void begin_value(const YAML::Mark& mark) {
    if (++nodes_ > limits_.nodes) fail(mark, "more than " + std::to_string(limits_.nodes) + " values");
    if (!lines_ || frames_.empty()) return;
    const Frame& frame = frames_.back();
    lines_->emplace(path_of_next(), frame.is_map ? frame.key_line : mark.line + 1);
  }

  std::string path_of_next() const {
    if (!lines_ || frames_.empty()) return {};
    const Frame& frame = frames_.back();
    return detail::below(frame.path, frame.is_map ? frame.key : std::to_string(frame.items.size()));
  }

  void end_value(Tree value, YAML::anchor_t anchor) {
    if (anchor != 0) keep(anchor, value);
    if (frames_.empty()) {
      root_ = std::move(value);
      return;
    }
    Frame& frame = frames_.back();
    if (frame.is_map) {
      frame.entries.emplace_back(std::move(frame.key), std::move(value));
      frame.has_key = false;
    } else {
      frame.items.push_back(std::move(value));
    }
  }

  // Values of nested anchors hold each other, so that all of them together may be far larger than the text.
  void keep(YAML::anchor_t anchor, const Tree& value) {
    const std::size_t cost = cost_of(value);
    anchored_ += cost;
    if (anchored_ > kMostAnchored)
      throw ConfigError(source_ + ": the values of its anchors hold more than " + std::to_string(kMostAnchored) +
                        " values and bytes in all");
    anchors_.insert_or_assign(anchor, Anchor{value, cost, height_of(value)});
  }

  void begin_collection(const YAML::Mark& mark, const std::string& tag, const char* core_tag, YAML::anchor_t anchor,
                        bool is_map) {
    if (wants_key()) fail(mark, "a key must be text");
    if (!tag.empty() && tag != "?" && tag != "!" && tag != core_tag) fail_tag(mark, tag);
    if (static_cast<int>(frames_.size()) >= limits_.depth + 1) fail_depth(mark);
    begin_value(mark);
    std::string path = path_of_next();
    Frame& frame = frames_.emplace_back();
    frame.is_map = is_map;
    frame.anchor = anchor;
    frame.path = std::move(path);
  }

  void end_collection() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    end_value(frame.is_map ? Tree(Tree::Map(std::move(frame.entries))) : Tree(std::move(frame.items)), frame.anchor);
  }

  const std::string& source_;
  const ReadLimits& limits_;
  TreeLines* lines_;
  std::vector<Frame> frames_;
  std::unordered_map<YAML::anchor_t, Anchor> anchors_;
  Tree root_;
  std::size_t nodes_ = 0;
  std::size_t aliased_ = 0;
  std::size_t anchored_ = 0;
  bool started_ = false;
};

void check_text(std::string_view text, const std::string& source, const ReadLimits& limits) {
  const std::size_t most = std::min(limits.bytes, kMostBytes);
  if (text.size() > most)
    throw ConfigError(source + ": " + std::to_string(text.size()) + " bytes; at most " + std::to_string(most) +
                      " are read");
  auto fail = [&](std::size_t offset, const char* what) {
    throw ConfigError(source + ":" + std::to_string(detail::line_of(text, offset)) + ": " + what);
  };
  if (std::size_t bad = detail::find_invalid_utf8(text); bad != text.npos) fail(bad, "not UTF-8");
  std::size_t flow_marks = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    if (std::string_view("[]{},").find(text[i]) != std::string_view::npos && ++flow_marks > kMostFlowMarks)
      fail(i, "more than 262144 brackets and commas; write that much as JSON");
    if ((c < 0x20 && c != '\n' && c != '\t' && c != '\r') || c == 0x7f)
      fail(i, "a control character; write it escaped in double quotes");
  }
}

}  // namespace

Tree read_yaml(std::string_view text, const std::string& source, const ReadLimits& limits, TreeLines* lines) {
  check_text(text, source, limits);
  TreeBuilder builder(source, limits, lines);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    throw ConfigError(source + (error.mark.is_null() ? "" : ":" + std::to_string(error.mark.line + 1)) + ": " +
                      error.msg);
  }
  return builder.take();
}

}  // namespace fabric
