#include "plugins/collectives/waits/activity.h"

namespace fabric::collectives {

// Never destroyed: a thread that answers the other ranks reads it until the process ends.
Activity& Activity::of_process() {
  static auto* activity = new Activity;
  return *activity;
}

std::string Activity::task_in_words() const {
  const char* task = task_.load(std::memory_order_relaxed);
  if (!task) return "";
  auto number = number_.load(std::memory_order_relaxed);
  return number > 0 ? task + (" " + std::to_string(number)) : task;
}

std::string Activity::in_words() const {
  const char* operation = operation_.load(std::memory_order_relaxed);
  if (operation) return within_task(operation);
  auto task = task_in_words();
  if (!task.empty()) return task;
  const char* last = last_.load(std::memory_order_relaxed);
  return last ? std::string("outside of collectives, the last of which was ") + last
              : "outside of collectives, of which it has made none yet";
}

std::string Activity::within_task(const std::string& what) const {
  auto task = task_in_words();
  if (task.empty() || what.starts_with(task)) return what;
  return task + " (" + what + ")";
}

std::string within_task(const std::string& what) { return Activity::of_process().within_task(what); }

}  // namespace fabric::collectives
