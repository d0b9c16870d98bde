#include "plugins/checkpoint_io/integrity/crc32c.h"

#include <random>
#include <string>

#include "plugins/checkpoint_io/integrity/sealed_text.h"
#include "tests/support/catch.h"

using fabric::checkpoint::crc32c;
using fabric::checkpoint::crc32c_by_tables;

TEST_CASE("CRC-32C gives the sums that others publish, with the processor's help and without", "[checkpoint][sums]") {
  auto both = [](const std::string& bytes) {
    auto sum = crc32c(0, bytes.data(), bytes.size());
    CHECK(crc32c_by_tables(0, bytes.data(), bytes.size()) == sum);
    return sum;
  };
  CHECK(both("") == 0);
  CHECK(both("123456789") == 0xe3069283u);
  // RFC 3720, appendix B.4.
  CHECK(both(std::string(32, '\0')) == 0x8a9136aau);
  CHECK(both(std::string(32, '\xff')) == 0x62a8ab43u);
  std::string up, down;
  for (char i = 0; i < 32; ++i) up += i, down.insert(down.begin(), i);
  CHECK(both(up) == 0x46dd794eu);
  CHECK(both(down) == 0x113fdb5cu);
}

TEST_CASE("CRC-32C is the same by both ways, wherever the bytes lie and are cut", "[checkpoint][sums]") {
  std::mt19937 random(5);
  std::string bytes(40'000, '\0');
  for (auto& byte : bytes) byte = static_cast<char>(random());
  for (std::size_t size : {1u, 7u, 8u, 9u, 6143u, 6144u, 6145u, 12'289u, 39'000u})
    for (std::size_t from : {0u, 1u, 5u}) {
      INFO(size << " bytes from " << from);
      auto whole = crc32c_by_tables(0, bytes.data() + from, size);
      CHECK(crc32c(0, bytes.data() + from, size) == whole);
      const std::size_t cut = random() % size;
      CHECK(crc32c(crc32c(0, bytes.data() + from, cut), bytes.data() + from + cut, size - cut) == whole);
    }
}

TEST_CASE("a sealed text tells each change of itself", "[checkpoint][sums]") {
  using namespace fabric::checkpoint;
  const std::string mark = "\"sum\":\"";
  std::string text = R"({"sum":"00000000","a":[1,2,3]})";
  seal(text, 0, mark);
  CHECK(why_unsealed(text, mark).empty());
  for (std::size_t i = mark.size() + 1; i < text.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      auto bad = text;
      bad[i] = static_cast<char>(bad[i] ^ 1 << bit);
      CHECK(!why_unsealed(bad, mark).empty());
    }
  CHECK(!why_unsealed(text + " ", mark).empty());
  CHECK(!why_unsealed("{}", mark).empty());
  CHECK(!why_unsealed(R"({"sum":"00")", mark).empty());
}
