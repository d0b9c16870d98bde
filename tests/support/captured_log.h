#pragma once
// What the library logs while something runs.

#include <unistd.h>

#include <cstdio>
#include <string>

namespace fabric::testing {

/// Everything that `work` writes to stderr.
template <class Work>
std::string log_of(Work&& work) {
  std::FILE* file = std::tmpfile();
  std::fflush(stderr);
  const int before = dup(2);
  dup2(fileno(file), 2);
  work();
  std::fflush(stderr);
  dup2(before, 2);
  close(before);
  std::rewind(file);
  std::string text;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

}  // namespace fabric::testing
