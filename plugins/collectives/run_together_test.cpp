// What fails on one rank is an error on all, of the same class.
#include <fabric/plugins/collectives/run_together.h>

#include <stdexcept>
#include <string>
#include <typeinfo>

#include "tests/support/group_of_ranks.h"

using fabric::ErrorKind;
using fabric::run_together;

namespace {

constexpr ErrorKind kKinds[] = {ErrorKind::other,
                                ErrorKind::config,
                                ErrorKind::misuse,
                                ErrorKind::unavailable,
                                ErrorKind::launch,
                                ErrorKind::collective,
                                ErrorKind::timeout,
                                ErrorKind::mismatch,
                                ErrorKind::checkpoint,
                                ErrorKind::data,
                                ErrorKind::checkpoint_corrupt,
                                ErrorKind::checkpoint_key,
                                ErrorKind::training_spike};

struct Caught {
  std::string type = "nothing", text;
  ErrorKind kind = ErrorKind::other;
};

template <class Work>
Caught caught(Work&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return {typeid(error).name(), error.what(), fabric::kind_of(error)};
  } catch (...) {
    return {"no std::exception"};
  }
  return {};
}

struct Own : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OwnConfigError : fabric::ConfigError {
  using ConfigError::ConfigError;
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("each class has a number of its own, which stays", "[errors]") {
  for (ErrorKind kind : kKinds) {
    auto error = caught([&] { fabric::throw_error(kind, "why"); });
    CHECK(error.kind == kind);
    CHECK(error.text == "why");
  }
  CHECK(static_cast<int>(ErrorKind::other) == 1);
  CHECK(static_cast<int>(ErrorKind::config) == 2);
  CHECK(static_cast<int>(ErrorKind::misuse) == 3);
  CHECK(static_cast<int>(ErrorKind::unavailable) == 4);
  CHECK(static_cast<int>(ErrorKind::launch) == 5);
  CHECK(static_cast<int>(ErrorKind::collective) == 16);
  CHECK(static_cast<int>(ErrorKind::timeout) == 17);
  CHECK(static_cast<int>(ErrorKind::mismatch) == 18);
  CHECK(static_cast<int>(ErrorKind::checkpoint) == 32);
  CHECK(static_cast<int>(ErrorKind::checkpoint_corrupt) == 33);
  CHECK(static_cast<int>(ErrorKind::checkpoint_key) == 34);
  CHECK(static_cast<int>(ErrorKind::data) == 48);
  CHECK(static_cast<int>(ErrorKind::training_spike) == 49);
  CHECK(caught([] { fabric::throw_error(ErrorKind(1000), "of a later version"); }).kind == ErrorKind::other);
  CHECK(fabric::kind_of(OwnConfigError("x")) == ErrorKind::config);
  CHECK(fabric::kind_of(std::runtime_error("x")) == ErrorKind::other);
  CHECK_THROWS_AS(fabric::throw_error(ErrorKind::checkpoint_key, "x"), fabric::CheckpointError);
}

ALL_BACKENDS_TEST("every rank throws the class of the one that failed, with its words", "[errors][ranks]", 3) {
  auto group = ranks::group_from_env();
  for (ErrorKind kind : kKinds) {
    auto error = caught([&] {
      run_together(group, "test", [&] {
        if (rank == 1) fabric::throw_error(kind, "the disk of one");
      });
    });
    auto same = caught([&] { fabric::throw_error(kind, ""); });
    RANK_CHECK(error.kind == kind && error.type == same.type);
    RANK_CHECK(error.text == (rank == 1 ? "the disk of one" : "rank 1: the disk of one"));
  }
  run_together(group, "test", [] {});
  // A class that only the failing rank knows, and one of another family.
  auto own = caught([&] {
    run_together(group, "test", [&] {
      if (rank == 2) throw OwnConfigError("mine");
    });
  });
  RANK_CHECK(own.kind == ErrorKind::config);
  RANK_CHECK(own.type == (rank == 2 ? typeid(OwnConfigError).name() : typeid(fabric::ConfigError).name()));
  auto foreign = caught([&] {
    run_together(
        group, "test",
        [&] {
          if (rank == 0) throw Own("the user's");
        },
        ErrorKind::checkpoint);
  });
  RANK_CHECK(foreign.type == (rank == 0 ? typeid(Own).name() : typeid(fabric::CheckpointError).name()));
  RANK_CHECK(foreign.text == (rank == 0 ? "the user's" : "rank 0: the user's"));
  auto nameless = caught([&] {
    run_together(group, "test", [&] {
      if (rank == 0) throw 3;
    });
  });
  RANK_CHECK(rank == 0 || nameless.kind == ErrorKind::other);
}

ALL_BACKENDS_TEST("several that fail in different ways are one error", "[errors][ranks]", 3) {
  auto group = ranks::group_from_env();
  auto error = caught([&] {
    run_together(group, "test", [&] {
      if (rank == 1) throw fabric::CheckpointCorrupt("truncated");
      if (rank == 2) throw fabric::ConfigError("no such name");
    });
  });
  RANK_CHECK(error.kind == ErrorKind::checkpoint_corrupt);
  RANK_CHECK(has(error.text, "truncated"));
  if (rank == 0) RANK_CHECK(has(error.text, "rank 1: ") && has(error.text, "1 other rank failed too"));
  if (rank == 2) RANK_CHECK(has(error.text, "rank 1: ") && has(error.text, "no such name"));
  auto apart = caught([&] { run_together(group, rank == 0 ? "save" : "load", [] {}); });
  RANK_CHECK(apart.kind == ErrorKind::mismatch);
  RANK_CHECK(has(apart.text, "rank 0 in save") && has(apart.text, "rank 2 in load"));
  group.barrier();
}
