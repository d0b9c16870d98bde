#pragma once

#include <string>
#include <vector>

#include <fabric/export.h>

namespace fabric {

/// One part, as users write it.
/// One thing that can be chosen by name.
struct RegisteredPart {
  std::string name;
  std::string description;
};

/// The parts of one kind: "strategy" with single_device, ddp, …
struct PartList {
  std::string kind;
  std::vector<RegisteredPart> parts;
};

/// What can be chosen by name, of every kind that this process has asked for so far, in alphabetical order of kinds;
/// parts in the order of registration. list_parts() of helpers.h asks for all kinds of the library first.
FABRIC_API std::vector<PartList> registered_parts();

}  // namespace fabric
