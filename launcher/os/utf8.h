#pragma once

#include <fabric/base/tree.h>

namespace fabric {

/// Programs may write any bytes; JSON takes UTF-8 only. Strings of the tree that are none lose all that is not ASCII.
void make_utf8(Tree& tree);

}  // namespace fabric
