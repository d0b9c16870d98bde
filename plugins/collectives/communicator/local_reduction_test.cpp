#include "plugins/collectives/communicator/local_reduction.h"

#include <torch/torch.h>

#include <limits>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using namespace fabric::collectives;

namespace {

template <class T>
std::vector<T> reduce(std::vector<T> inputs, int ranks, at::ScalarType type, ReduceType op) {
  auto each = inputs.size() / static_cast<std::size_t>(ranks);
  std::vector<T> output(each);
  reduce_in_rank_order(inputs.data(), each * sizeof(T), ranks, output.data(), static_cast<std::int64_t>(each), type,
                       op);
  return output;
}

}  // namespace

TEST_CASE("memory is reduced in the order of the ranks", "[collectives][reduction]") {
  // In another order the small ones would be lost, or not.
  CHECK(reduce<float>({1e8f, 4.0f, -1e8f}, 3, at::kFloat, ReduceType::SUM)[0] == (1e8f + 4.0f) - 1e8f);
  CHECK(reduce<float>({1e8f, -1e8f, 4.0f}, 3, at::kFloat, ReduceType::SUM)[0] == 4.0f);
  CHECK(reduce<double>({2, 3, 4, 5}, 2, at::kDouble, ReduceType::PRODUCT) == std::vector<double>{8, 15});
  CHECK(reduce<std::int64_t>({2, 9, 4, 5}, 2, at::kLong, ReduceType::MIN) == std::vector<std::int64_t>{2, 5});
  CHECK(reduce<std::int64_t>({2, 9, 4, 5}, 2, at::kLong, ReduceType::AVG) == std::vector<std::int64_t>{6, 14});
  CHECK(reduce<std::int32_t>({6, 9, 3, 5}, 2, at::kInt, ReduceType::BAND) == std::vector<std::int32_t>{2, 1});
  CHECK(reduce<std::uint8_t>({1, 0, 0, 0}, 2, at::kBool, ReduceType::SUM) == std::vector<std::uint8_t>{1, 0});
  CHECK(reduce<std::uint8_t>({1, 1, 0, 1}, 2, at::kBool, ReduceType::AVG) == std::vector<std::uint8_t>{0, 1});
  auto most = std::numeric_limits<std::int32_t>::max();
  CHECK(reduce<std::int32_t>({most, 1}, 2, at::kInt, ReduceType::SUM)[0] == std::numeric_limits<std::int32_t>::min());
  CHECK(std::isnan(reduce<float>({1, NAN, 3}, 3, at::kFloat, ReduceType::MAX)[0]));
  CHECK(std::isnan(reduce<float>({NAN, 1, 3}, 3, at::kFloat, ReduceType::MIN)[0]));
}

TEST_CASE("16-bit floats are added in float and rounded once", "[collectives][reduction]") {
  auto half = [](float value) { return at::Half(value); };
  // 2048 + 1 is 2048 in half; 2048 + 1 + 1 is 2050.
  CHECK(static_cast<float>(reduce<at::Half>({half(2048), half(1), half(1)}, 3, at::kHalf, ReduceType::SUM)[0]) ==
        2050.0f);
  CHECK(static_cast<float>(reduce<at::BFloat16>({at::BFloat16(256.0f), at::BFloat16(1.0f), at::BFloat16(1.0f)}, 3,
                                                at::kBFloat16, ReduceType::SUM)[0]) == 258.0f);
}

TEST_CASE("long blocks of every type agree with LibTorch", "[collectives][reduction]") {
  torch::manual_seed(1);
  for (auto type : {at::kFloat, at::kDouble, at::kInt, at::kLong, at::kShort, at::kChar, at::kByte, at::kHalf}) {
    auto inputs = torch::randint(0, 30, {3, 1337}).to(type);
    auto output = torch::empty({1337}, type);
    auto stride = 1337 * output.element_size();
    auto wide = inputs.to(at::kDouble);
    reduce_in_rank_order(inputs.const_data_ptr(), stride, 3, output.mutable_data_ptr(), 1337, type, ReduceType::SUM);
    CHECK(torch::equal(output.to(at::kDouble), wide.sum(0)));
    reduce_in_rank_order(inputs.const_data_ptr(), stride, 3, output.mutable_data_ptr(), 1337, type, ReduceType::MAX);
    CHECK(torch::equal(output.to(at::kDouble), std::get<0>(wide.max(0))));
    auto pair = inputs[0].clone();
    reduce_into(inputs[1].const_data_ptr(), pair.mutable_data_ptr(), 1337, type, ReduceType::MIN);
    CHECK(torch::equal(pair.to(at::kDouble), torch::minimum(wide[0], wide[1])));
  }
}

TEST_CASE("reductions that are not there are refused", "[collectives][reduction]") {
  CHECK_FALSE(can_reduce(at::kFloat, ReduceType::BAND));
  CHECK_FALSE(can_reduce(at::kComplexFloat, ReduceType::SUM));
  CHECK_FALSE(can_reduce(at::kFloat8_e4m3fn, ReduceType::SUM));
  CHECK(can_reduce(at::kUInt64, ReduceType::MAX));
  CHECK_THROWS_AS(require_reducible(at::kHalf, ReduceType::BXOR), fabric::MisuseError);
}
