#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

#include <fabric/plugins/precision/mixed_precision.h>
#include <fabric/plugins/precision/precision.h>
#include "tests/support/catch.h"

using fabric::ConfigError;
using fabric::make_precision;

namespace {

// What is written to stderr while the function runs.
template <class Function>
std::string stderr_of(Function&& function) {
  std::FILE* file = std::tmpfile();
  int before = dup(2);
  dup2(fileno(file), 2);
  function();
  std::fflush(stderr);
  dup2(before, 2);
  close(before);
  std::string text(static_cast<std::size_t>(lseek(fileno(file), 0, SEEK_END)), '\0');
  if (pread(fileno(file), text.data(), text.size(), 0) < 0) text.clear();
  std::fclose(file);
  return text;
}

}  // namespace

TEST_CASE("precisions are made by name", "[registry]") {
  for (const char* name : {"64-true", "32-true", "16-true", "bf16-true", "bf16-mixed"}) {
    CHECK(make_precision(name)->name() == name);
    CHECK(make_precision(name, "cuda")->name() == name);
  }
  CHECK(make_precision("16-mixed", "cuda")->name() == "16-mixed");
  CHECK(make_precision("BF16-Mixed")->name() == "bf16-mixed");
  auto mixed = std::dynamic_pointer_cast<fabric::MixedPrecision>(make_precision("16-mixed", "cuda"));
  REQUIRE(mixed);
  CHECK(mixed->scaler());
}

TEST_CASE("short names are understood, with a warning where they are ambiguous", "[registry]") {
  using Catch::Contains;
  auto warning = [](const char* alias, const char* device, const char* name) {
    return stderr_of([&] { CHECK(make_precision(alias, device)->name() == name); });
  };
  CHECK(warning("64", "cpu", "64-true").empty());
  CHECK(warning("32", "cpu", "32-true").empty());
  CHECK_THAT(warning("16", "cuda", "16-mixed"), Contains("'16-mixed'"));
  CHECK_THAT(warning("bf16", "cpu", "bf16-mixed"), Contains("'bf16-mixed'"));
}

TEST_CASE("16-mixed on the CPU becomes bf16-mixed, with a warning", "[registry]") {
  auto text = stderr_of([] { CHECK(make_precision("16-mixed", "cpu")->name() == "bf16-mixed"); });
  CHECK_THAT(text, Catch::Contains("bf16-mixed is used instead"));
}

TEST_CASE("an unknown precision is refused with the nearest name", "[registry]") {
  CHECK_THROWS_AS(make_precision("8-mixed-up"), ConfigError);
  CHECK_THROWS_WITH(make_precision("bf16-mixd"), Catch::Contains("did you mean 'bf16-mixed'"));
  CHECK_THROWS_AS(make_precision(""), ConfigError);
}

TEST_CASE("precisions of the user's own", "[registry]") {
  struct Mine : fabric::Precision {
    std::string name() const override { return "mine"; }
  };
  auto make = [](const std::string&) { return std::make_shared<Mine>(); };
  fabric::register_precision("mine", make);
  CHECK(make_precision("mine")->name() == "mine");
  CHECK(fabric::available_precisions().back() == "mine");
  CHECK_THROWS_AS(fabric::register_precision("mine", make), ConfigError);
  CHECK_NOTHROW(fabric::register_precision("mine", make, true));
  CHECK_THROWS_AS(fabric::register_precision("32-true", make), ConfigError);
  CHECK_THROWS_AS(fabric::register_precision("empty", nullptr), fabric::MisuseError);
  CHECK(fabric::available_precisions().size() == 7);
}
