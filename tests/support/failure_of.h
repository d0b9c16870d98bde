#pragma once

#include <string>

/// The text of the Error that `action` throws; empty where it throws none. Any other exception goes on.
template <class Error, class Action>
std::string failure_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
