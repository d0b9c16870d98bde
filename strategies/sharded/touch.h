#pragma once

namespace fabric::sharded {

class Unit;

/// From now on operators that are given a content of a unit tell its engine.
void watch_touches();
/// Throws the MisuseError of an operator that reads a piece outside of passes.
[[noreturn]] void refuse_touch(const Unit& unit);

}  // namespace fabric::sharded
