#pragma once

#include <functional>
#include <string>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/value.h>
#include <fabric/plugins/collectives/process_group.h>

namespace fabric {

class Fabric;

/// Who decides together with this process. The helpers ask it, so that all ranks stop, save and change phases at the
/// same moment. Made from a Fabric (after launch) or a ProcessGroup, or without anything for a process of its own. A
/// handle: copies share the group. Every operation is collective: all ranks call it, in the same order. With one rank
/// nothing is communicated.
class FABRIC_API Peers {
 public:
  /// This process alone.
  Peers() = default;
  /// The ranks of a job. Throws MisuseError before fabric.launch() where the strategy needs it.
  Peers(const Fabric& fabric);
  /// The ranks of a group; an empty handle means this process alone. On a rank outside of the group everything but
  /// `size` throws MisuseError.
  Peers(ProcessGroup group);

  int rank() const { return group_.is_set() ? group_.rank() : 0; }
  int size() const { return group_.is_set() ? group_.size() : 1; }
  bool is_alone() const { return size() == 1; }
  /// A group of one for this process alone.
  ProcessGroup group() const { return group_.is_set() ? group_ : ProcessGroup::single(); }

  /// True when at least one rank (any) or every rank (all) says so.
  bool any(bool decision) const;
  bool all(bool decision) const;
  /// Of one number per rank, in double precision, by one reduction. NaN on any rank makes sum and mean NaN; whether it
  /// makes max NaN is up to the backend, so ask `any(std::isnan(x))` where it matters.
  double max(double value) const;
  double sum(double value) const;
  double mean(double value) const;
  /// Sums element by element, one reduction for all of them; each rank gives as many.
  std::vector<double> sum(std::vector<double> values) const;
  /// The value of rank `src`.
  Value broadcast(const Value& value, int src = 0) const;
  /// Every rank's value, by rank.
  std::vector<Value> gather(const Value& value) const;
  /// fabric::run_together: what fails on one rank is an error on all.
  void run_together(const std::string& operation, const std::function<void()>& work,
                    ErrorKind foreign = ErrorKind::other) const;
  /// Waits until every rank is here; `name` appears in the error when one never comes.
  void barrier(const std::string& name = "") const;

 private:
  double reduce(double value, ReduceOp op) const;
  ProcessGroup group_;
};

}  // namespace fabric
