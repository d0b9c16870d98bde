#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include <fabric/export.h>

namespace fabric::collectives {

/// What this process is doing, as far as other ranks may want to know: the task ("save", "ddp step" with its number)
/// and the operation in it. Names are literals and everything is a relaxed store, so that it costs nothing to say. The
/// thread that works writes, others read.
class Activity {
 public:
  static Activity& of_process();

  void begin_operation(const char* name) { operation_.store(name, std::memory_order_relaxed); }
  void end_operation() {
    last_.store(operation_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    operation_.store(nullptr, std::memory_order_relaxed);
  }
  /// The task, or null outside of all.
  const char* task() const { return task_.load(std::memory_order_relaxed); }
  /// "ddp step 12", "save"; empty outside of all.
  std::string task_in_words() const;
  /// "ddp step 12 (all_reduce)", "outside of collectives, the last of which was barrier".
  std::string in_words() const;
  /// `what` as a part of the task: "save (all_gather of a value)"; itself outside of all, and where they are the same.
  std::string within_task(const std::string& what) const;

 private:
  friend class Task;
  std::atomic<const char*> task_{nullptr}, operation_{nullptr}, last_{nullptr};
  std::atomic<std::int64_t> number_{0};  // of the task; 0: it has none
};

/// Activity::within_task of this process, for the libraries that are loaded beside this one.
FABRIC_API std::string within_task(const std::string& what);

/// Names a task for as long as it lives, unless it is a part of another. All ranks begin it together: its name is part
/// of what the check compares.
class Task {
 public:
  explicit Task(const char* name, std::int64_t number = 0) {
    auto& activity = Activity::of_process();
    outermost_ = !activity.task();
    if (!outermost_) return;
    activity.number_.store(number, std::memory_order_relaxed);
    activity.task_.store(name, std::memory_order_relaxed);
  }
  ~Task() {
    if (outermost_) Activity::of_process().task_.store(nullptr, std::memory_order_relaxed);
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

 private:
  bool outermost_;
};

}  // namespace fabric::collectives
