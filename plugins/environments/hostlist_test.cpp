#include "plugins/environments/hostlist.h"

#include <fabric/base/error.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "tests/support/catch.h"

using fabric::expand_counts;
using fabric::expand_hostlist;

namespace {

struct Row {
  std::string list;
  std::string hosts;  // separated by blanks
};

// What `scontrol show hostnames` of SLURM 22.05 answers.
const std::vector<Row> kValid{
    {"n1", "n1"},
    {"n1,n2", "n1 n2"},
    {"n[1-3]", "n1 n2 n3"},
    {"n[001-3]", "n001 n002 n003"},
    {"[08-09]", "08 09"},
    {"[1-3]", "1 2 3"},
    {"a[1-2]b[3-4]", "a1b3 a1b4 a2b3 a2b4"},
    {"n[1-2][3-4]", "n13 n14 n23 n24"},
    {"n[8-10]", "n8 n9 n10"},
    {"n[08-10]", "n08 n09 n10"},
    {"n[9-010]", "n9 n10"},
    {"n[00-2]", "n00 n01 n02"},
    {"n[1,3,5-7]", "n1 n3 n5 n6 n7"},
    {"n[1,1]", "n1 n1"},
    {"n1,n1", "n1 n1"},
    {"n2,n1", "n2 n1"},
    {"n1 n2", "n1 n2"},
    {"a,,b", "a b"},
    {",a", "a"},
    {"a,", "a"},
    {"gpu-[08-09],n[1-2]", "gpu-08 gpu-09 n1 n2"},
    {"n[1-2],m3,k[01-02]", "n1 n2 m3 k01 k02"},
    {"a-1", "a-1"},
    {"n[5-5]", "n5"},
};

const std::vector<std::string> kInvalid{
    "n[1-9/4]", "n[]",    "n[3-1]",   "n[a-b]",         "n[-1]",    "n[1,]",  "n[1,,2]",   "n[1-2]x",
    "a[1-2]b",  "n[1 2]", "n[1-2-3]", "n[0-999999999]", "n[[1-2]]", "n[0x1]", "n[1-2]-ib", "n[1-65537]",
};

// SLURM makes something of these that nobody means (`n]`, or a number cut to 64 bits).
const std::vector<std::string> kRefusedByUsOnly{"n[1",     "n1]",     "n[1-]",    "n[99999999999999999999]",
                                                "n[ 1-2]", "n[+1-2]", "a[1-2],b["};

std::string joined(const std::vector<std::string>& hosts) {
  std::string text;
  for (const auto& host : hosts) text += (text.empty() ? "" : " ") + host;
  return text;
}

// Empty when scontrol is not installed.
std::string ask_scontrol(const std::string& list) {
  auto command = "scontrol show hostnames '" + list + "' 2>/dev/null";
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  std::array<char, 4096> buffer;
  while (pipe && fgets(buffer.data(), buffer.size(), pipe.get())) text += buffer.data();
  std::istringstream words(text);
  std::vector<std::string> hosts;
  for (std::string host; words >> host;) hosts.push_back(host);
  return joined(hosts);
}

}  // namespace

TEST_CASE("host lists expand as SLURM expands them", "[hostlist]") {
  bool compare = ask_scontrol("n1") == "n1";
  for (const auto& row : kValid) {
    INFO(row.list);
    CHECK(joined(expand_hostlist(row.list)) == row.hosts);
    if (compare) CHECK(ask_scontrol(row.list) == row.hosts);
  }
  CHECK(expand_hostlist("").empty());
  CHECK(joined(expand_hostlist("1.2.3.[089, 100-101]")) == "1.2.3.089 1.2.3.100 1.2.3.101");
}

TEST_CASE("host lists that SLURM refuses are errors", "[hostlist]") {
  for (const auto& list : kInvalid) {
    INFO(list);
    CHECK_THROWS_AS(expand_hostlist(list), fabric::ConfigError);
  }
  for (const auto& list : kRefusedByUsOnly) {
    INFO(list);
    CHECK_THROWS_AS(expand_hostlist(list), fabric::ConfigError);
  }
}

TEST_CASE("an invalid host list is quoted, with the place", "[hostlist]") {
  CHECK_THROWS_WITH(expand_hostlist("n[3-1]"),
                    Catch::Contains("'n[3-1]'") && Catch::Contains("runs backwards") && Catch::Contains("character 6"));
  CHECK_THROWS_WITH(expand_hostlist(std::string(5000, 'x') + "[1"), Catch::Contains("…"));
}

TEST_CASE("hostile host lists stay small", "[hostlist]") {
  CHECK(expand_hostlist("n[1-65536]").size() == 65536);
  CHECK_THROWS_AS(expand_hostlist("n[0-18446744073709551615]"), fabric::ConfigError);
  CHECK_THROWS_AS(expand_hostlist("n[1-1000]m[1-1000]"), fabric::ConfigError);
  CHECK_THROWS_AS(expand_hostlist("n[1-60000],m[1-60000]"), fabric::ConfigError);
  std::string many = "a";
  for (int i = 0; i < 64; ++i) many += "[0-1]";
  CHECK_THROWS_AS(expand_hostlist(many), fabric::ConfigError);
}

TEST_CASE("a wide number does not make long names out of a short list", "[hostlist]") {
  auto list = "n[" + std::string(100000, '0') + "-60000]";
  CHECK_THROWS_AS(expand_hostlist(list), fabric::ConfigError);
}

TEST_CASE("counts expand", "[hostlist]") {
  CHECK(expand_counts("2(x2),1(x2)") == std::vector<int>{2, 2, 1, 1});
  CHECK(expand_counts("4") == std::vector<int>{4});
  CHECK(expand_counts("2,3(x1)") == std::vector<int>{2, 3});
  for (std::string list : {"x", "2(2)", "2(x", "2(x2", "2(x2)3", "1(x999999999)", "-1", "99999999999"}) {
    INFO(list);
    CHECK_THROWS_AS(expand_counts(list), fabric::ConfigError);
  }
}
