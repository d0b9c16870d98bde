#include "plugins/collectives/communicator/local_reduction.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/SmallVector.h>

#include <fabric/base/error.h>

namespace fabric::collectives {
namespace {

// Integers are computed in 64 bits without a sign, where an overflow wraps.
struct AddItems {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
    else
      return a + b;
  }
};
struct MultiplyItems {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
    else
      return a * b;
  }
};
struct SmallerItem {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return a < b ? a : b;
    else
      return std::isnan(a) || a < b ? a : b;
  }
};
struct LargerItem {
  template <class T>
  static T of(T a, T b) {
    if constexpr (std::is_integral_v<T>)
      return a > b ? a : b;
    else
      return std::isnan(a) || a > b ? a : b;
  }
};
struct AndItems {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct OrItems {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct XorItems {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};

// What the items of a type are added in.
template <class T>
using Wide = std::conditional_t<std::is_arithmetic_v<T>, T, float>;

// Inlined into functions for older and newer processors, so that each gets vectors of its size.
#define FABRIC_PART_OF_CALLER inline __attribute__((always_inline))

// The same place of several outputs and inputs may be one: no vector of the loop reads what another one wrote.
#define FABRIC_NO_ORDER _Pragma("GCC ivdep")

template <class T, class Combine>
FABRIC_PART_OF_CALLER void reduce_two(const T* a, const T* b, T* to, std::int64_t count) {
  FABRIC_NO_ORDER
  for (std::int64_t i = 0; i < count; ++i)
    to[i] = static_cast<T>(Combine::of(static_cast<Wide<T>>(a[i]), static_cast<Wide<T>>(b[i])));
}

template <class T, class Combine>
FABRIC_PART_OF_CALLER void reduce_many(const void* const* inputs, int ranks, std::int64_t begin, T* to,
                                       std::int64_t count, Wide<T>* block) {
  auto input = [&](int rank) { return static_cast<const T*>(inputs[rank]) + begin; };
  const T *first = input(0), *second = input(1), *last = input(ranks - 1);
  for (std::int64_t i = 0; i < count; ++i)
    block[i] = Combine::of(static_cast<Wide<T>>(first[i]), static_cast<Wide<T>>(second[i]));
  for (int rank = 2; rank < ranks - 1; ++rank) {
    const T* from = input(rank);
    for (std::int64_t i = 0; i < count; ++i) block[i] = Combine::of(block[i], static_cast<Wide<T>>(from[i]));
  }
  FABRIC_NO_ORDER
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(Combine::of(block[i], static_cast<Wide<T>>(last[i])));
}

// In blocks that stay in the nearest cache.
template <class T, class Combine>
FABRIC_PART_OF_CALLER void reduce_ranks(const void* const* inputs, int ranks, void* const* outputs, int places,
                                        std::int64_t count) {
  constexpr std::int64_t kBlock = 1024;
  Wide<T> block[kBlock];
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const auto length = std::min(kBlock, count - begin);
    T* to = static_cast<T*>(outputs[0]) + begin;
    auto input = [&](int rank) { return static_cast<const T*>(inputs[rank]) + begin; };
    const auto bytes = static_cast<std::size_t>(length) * sizeof(T);
    if (ranks == 1)
      std::memmove(to, input(0), bytes);
    else if (ranks == 2)
      reduce_two<T, Combine>(input(0), input(1), to, length);
    else
      reduce_many<T, Combine>(inputs, ranks, begin, to, length, block);
    for (int place = 1; place < places; ++place) std::memcpy(static_cast<T*>(outputs[place]) + begin, to, bytes);
  }
}

using ReduceRanks = void (*)(const void* const*, int, void* const*, int, std::int64_t);

template <class T, class Combine>
void reduce_ranks_anywhere(const void* const* inputs, int ranks, void* const* outputs, int places, std::int64_t count) {
  reduce_ranks<T, Combine>(inputs, ranks, outputs, places, count);
}

#if defined(__x86_64__)
template <class T, class Combine>
__attribute__((target("avx2"))) void reduce_ranks_avx2(const void* const* inputs, int ranks, void* const* outputs,
                                                       int places, std::int64_t count) {
  reduce_ranks<T, Combine>(inputs, ranks, outputs, places, count);
}

template <class T, class Combine>
ReduceRanks reduce_ranks_here() {
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  return has_avx2 ? reduce_ranks_avx2<T, Combine> : reduce_ranks_anywhere<T, Combine>;
}
#else
template <class T, class Combine>
ReduceRanks reduce_ranks_here() {
  return reduce_ranks_anywhere<T, Combine>;
}
#endif

template <class T, class Combine>
void reduce_pair(const void* input, void* output, std::int64_t count) {
  const auto* from = static_cast<const T*>(input);
  auto* to = static_cast<T*>(output);
  for (std::int64_t i = 0; i < count; ++i)
    to[i] = static_cast<T>(Combine::of(static_cast<Wide<T>>(to[i]), static_cast<Wide<T>>(from[i])));
}

struct Functions {
  ReduceRanks ranks = nullptr;
  void (*pair)(const void*, void*, std::int64_t) = nullptr;
};

template <class T, class Combine>
Functions functions_of() {
  return {reduce_ranks_here<T, Combine>(), reduce_pair<T, Combine>};
}

template <class T>
Functions of_number(ReduceType op) {
  switch (op) {
    case ReduceType::SUM:
    case ReduceType::AVG:
      return functions_of<T, AddItems>();
    case ReduceType::PRODUCT:
      return functions_of<T, MultiplyItems>();
    case ReduceType::MIN:
      return functions_of<T, SmallerItem>();
    case ReduceType::MAX:
      return functions_of<T, LargerItem>();
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) {
    switch (op) {
      case ReduceType::BAND:
        return functions_of<T, AndItems>();
      case ReduceType::BOR:
        return functions_of<T, OrItems>();
      case ReduceType::BXOR:
        return functions_of<T, XorItems>();
      default:
        break;
    }
  }
  return {};
}

Functions of_logical(ReduceType op) {
  bool disjunction = op == ReduceType::SUM || op == ReduceType::MAX || op == ReduceType::BOR;
  if (op == ReduceType::BXOR) return functions_of<std::uint8_t, XorItems>();
  if (disjunction) return functions_of<std::uint8_t, LargerItem>();
  bool conjunction =
      op == ReduceType::AVG || op == ReduceType::PRODUCT || op == ReduceType::MIN || op == ReduceType::BAND;
  return conjunction ? functions_of<std::uint8_t, SmallerItem>() : Functions{};
}

Functions find_functions(at::ScalarType type, ReduceType op) {
  switch (type) {
    case at::kFloat:
      return of_number<float>(op);
    case at::kDouble:
      return of_number<double>(op);
    case at::kHalf:
      return of_number<at::Half>(op);
    case at::kBFloat16:
      return of_number<at::BFloat16>(op);
    case at::kBool:
      return of_logical(op);
    case at::kByte:
      return of_number<std::uint8_t>(op);
    case at::kChar:
      return of_number<std::int8_t>(op);
    case at::kShort:
      return of_number<std::int16_t>(op);
    case at::kInt:
      return of_number<std::int32_t>(op);
    case at::kLong:
      return of_number<std::int64_t>(op);
    case at::kUInt16:
      return of_number<std::uint16_t>(op);
    case at::kUInt32:
      return of_number<std::uint32_t>(op);
    case at::kUInt64:
      return of_number<std::uint64_t>(op);
    default:
      return {};
  }
}

Functions require_functions(at::ScalarType type, ReduceType op) {
  auto found = find_functions(type, op);
  if (!found.pair)
    throw MisuseError(std::string("there is no such reduction of ") + c10::toString(type) +
                      " tensors; there are sum, mean, min, max, product and, for integers, the bitwise ones. Convert "
                      "tensors of other types to float first");
  return found;
}

}  // namespace

bool can_reduce(at::ScalarType type, ReduceType op) { return find_functions(type, op).pair != nullptr; }

void require_reducible(at::ScalarType type, ReduceType op) { require_functions(type, op); }

void reduce_in_rank_order(const void* first, std::size_t stride, int ranks, void* output, std::int64_t count,
                          at::ScalarType type, ReduceType op) {
  c10::SmallVector<const void*, 64> inputs;
  for (int rank = 0; rank < ranks; ++rank)
    inputs.push_back(static_cast<const char*>(first) + static_cast<std::size_t>(rank) * stride);
  reduce_in_rank_order(inputs.data(), ranks, &output, 1, count, type, op);
}

void reduce_in_rank_order(const void* const* inputs, int ranks, void* const* outputs, int places, std::int64_t count,
                          at::ScalarType type, ReduceType op) {
  require_functions(type, op).ranks(inputs, ranks, outputs, places, count);
}

void reduce_into(const void* input, void* output, std::int64_t count, at::ScalarType type, ReduceType op) {
  require_functions(type, op).pair(input, output, count);
}

}  // namespace fabric::collectives
