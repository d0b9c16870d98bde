#pragma once

#include <map>
#include <string>
#include <vector>

// Runs the program that launches ranks, and looks for processes that it left behind.
namespace launch_support {

struct Run {
  int code = 0;           // 128 + n when killed by signal n; 124 when it ran out of time
  std::string output;     // stdout and stderr together
  double seconds = 0;     // until it ended
  std::vector<int> left;  // processes that were still there seconds later
  bool has(const std::string& text) const { return output.find(text) != std::string::npos; }
  /// Lines of the output that contain the text.
  std::vector<std::string> lines(const std::string& text = "") const;
};

/// `program` is fabric_launch_program unless the command line says otherwise (`sh`).
Run run(const std::vector<std::string>& arguments, const std::map<std::string, std::string>& variables = {},
        const std::string& program = "");
std::string program();

}  // namespace launch_support
