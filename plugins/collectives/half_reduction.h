#pragma once

#include <algorithm>
#include <cmath>

namespace fabric::collectives {

// Reductions of 16-bit floats, computed in float. A NaN wins over any number, as in LibTorch's own minimum and maximum.
struct Sum {
  static float of(float a, float b) { return a + b; }
};
struct Product {
  static float of(float a, float b) { return a * b; }
};
struct Min {
  static float of(float a, float b) { return std::isnan(a) || a < b ? a : b; }
};
struct Max {
  static float of(float a, float b) { return std::isnan(a) || a > b ? a : b; }
};

template <class Half, class Combine>
void reduce_halves(const Half* in, Half* inout, int count) {
  for (int i = 0; i < count; ++i)
    inout[i] = static_cast<Half>(Combine::of(static_cast<float>(in[i]), static_cast<float>(inout[i])));
}

}  // namespace fabric::collectives
