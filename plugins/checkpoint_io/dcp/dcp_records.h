#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/checkpoint_io/torch/pickle_reader.h"

namespace fabric::checkpoint {

[[noreturn]] void wrong_metadata(const std::string& why);

/// Objects become records, sizes lists, layouts texts; all else is foreign.
class RecordHost : public PickleHost {
 public:
  bool allows(const std::string& name) override;
  Id call(PickleReader& pickle, const std::string& name, Id arguments) override;
  Id persistent(PickleReader& pickle, Id id) override;
};

/// The objects that `.metadata` holds, each a record of its attributes. What is not of the kind that is asked for
/// throws CheckpointCorrupt; CheckpointError where it is an object of another class.
class Records {
 protected:
  using Id = PickleReader::Id;
  using Kind = PickleReader::Kind;
  using Node = PickleReader::Node;

  explicit Records(std::string_view bytes) : pickle_(bytes, host_), root_(pickle_.read()) {}
  Id root() const { return root_; }
  const Node& node(Id id) const { return pickle_[id]; }
  void require_record(Id id, std::string_view name) const;
  /// None for an attribute that is not there.
  std::optional<Id> find(Id record, std::string_view name) const;
  Id attribute(Id record, const char* name) const;
  const Node& dict(Id id, const char* what) const;
  std::string text(Id id, const char* what) const;
  /// From 0.
  std::int64_t number(Id id, const char* what) const;
  std::vector<std::int64_t> sizes(Id id, const char* what) const;

 private:
  RecordHost host_;
  PickleReader pickle_;
  Id root_;
};

}  // namespace fabric::checkpoint
