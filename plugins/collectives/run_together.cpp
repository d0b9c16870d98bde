#include <fabric/plugins/collectives/run_together.h>

#include <exception>
#include <optional>
#include <vector>

namespace fabric {
namespace {

struct Failure {
  int rank;
  ErrorKind kind;
  std::string text;
};

/// What this rank's work threw.
struct OwnFailure {
  std::exception_ptr exception;
  bool ours = false;  // derived from fabric::Error
  ErrorKind kind = ErrorKind::other;
  std::string text;
};

std::optional<OwnFailure> attempt(const std::function<void()>& work, ErrorKind foreign) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    return OwnFailure{std::current_exception(), true, error.kind(), error.what()};
  } catch (const std::exception& error) {
    return OwnFailure{std::current_exception(), false, foreign, error.what()};
  } catch (...) {
    return OwnFailure{std::current_exception(), false, foreign, "an exception that is no std::exception"};
  }
}

Value report_of(const std::string& operation, const std::optional<OwnFailure>& own) {
  if (!own) return Value::List{operation};
  return Value::List{operation, static_cast<int>(own->kind), own->text};
}

// The reports of ranks that are somewhere else altogether say nothing about this operation.
// Nor need they be reports: an all_gather of the program's own meets this one unless its task tells them apart.
void require_same_operation(const std::vector<Value>& reports) {
  auto name = [&](std::size_t rank) -> std::string {
    const Value& report = reports[rank];
    bool fits = report.is_list() && (report.as_list().size() == 1 || report.as_list().size() == 3) &&
                report.as_list()[0].is_string();
    return fits ? report.as_list()[0].as_string() : "all_gather of a value";
  };
  bool same = true;
  for (std::size_t rank = 1; rank < reports.size(); ++rank) same &= name(rank) == name(0);
  if (same) return;
  std::string text = "the ranks are in different operations:";
  for (std::size_t rank = 0; rank < reports.size(); ++rank)
    text += (rank ? ", rank " : " rank ") + std::to_string(rank) + " in " + name(rank);
  throw MismatchError(text + ". Every rank must call the same ones in the same order");
}

std::vector<Failure> failures_in(const std::vector<Value>& reports) {
  std::vector<Failure> failures;
  for (std::size_t rank = 0; rank < reports.size(); ++rank)
    if (const auto& report = reports[rank].as_list(); report.size() == 3)
      failures.push_back({static_cast<int>(rank), static_cast<ErrorKind>(report[1].as_int()), report[2].as_string()});
  return failures;
}

}  // namespace

void run_together(const ProcessGroup& group, const std::string& operation, const std::function<void()>& work,
                  ErrorKind foreign) {
  auto own = attempt(work, foreign);
  if (group.size() == 1) {
    if (own) std::rethrow_exception(own->exception);
    return;
  }
  std::vector<Value> reports;
  try {
    reports = group.all_gather_value(report_of(operation, own));
    require_same_operation(reports);
  } catch (const std::exception&) {
    if (own) std::rethrow_exception(own->exception);  // the cause; that the group is broken may well follow from it
    throw;
  }
  auto failures = failures_in(reports);
  if (failures.empty()) return;
  const Failure& first = failures.front();
  if (own && (!own->ours || own->kind == first.kind)) std::rethrow_exception(own->exception);
  std::string text = "rank " + std::to_string(first.rank) + ": " + first.text;
  if (own)
    text += ". This rank failed too: " + own->text;
  else if (failures.size() > 1)
    text += " (" + std::to_string(failures.size() - 1) + (failures.size() == 2 ? " other rank" : " other ranks") +
            " failed too)";
  throw_error(first.kind, text);
}

}  // namespace fabric
