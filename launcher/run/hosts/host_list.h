#pragma once

#include <optional>
#include <string>
#include <vector>

namespace fabric::run {

/// One machine of `--hosts` or `--hostfile`.
struct Host {
  std::string name;  // as ssh takes it: NAME, ADDRESS or USER@NAME
  int slots = 0;     // ranks; 0: none were named
  int max_slots = 0;
};

/// "host0:4,n[1-3,7]:2,user@host5,[fd00::1]:4", in order; a host that comes again adds to its slots. Throws
/// ConfigError.
std::vector<Host> parse_hosts(const std::string& text);

/// The lines of a hostfile as Open MPI has them: `host slots=4 max_slots=8`, and `# comments`; the host may be a list
/// of SLURM's. `origin` is named in errors. Throws ConfigError.
std::vector<Host> parse_hostfile(const std::string& text, const std::string& origin);
/// The same of a file.
std::vector<Host> read_hostfile(const std::string& path);

/// The name without USER@ and brackets: what is looked up, and shown.
std::string bare_name(const Host& host);

/// Words as a shell makes them of a line: blanks separate, quotes and backslashes keep. Throws ConfigError when a quote
/// is not closed.
std::vector<std::string> split_words(const std::string& line, const std::string& flag);

}  // namespace fabric::run
