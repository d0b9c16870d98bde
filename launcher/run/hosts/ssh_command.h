#pragma once

#include <string>
#include <vector>

#include "launcher/run/hosts/host_list.h"

namespace fabric::run {

/// How the hosts of a job are reached.
struct SshSettings {
  std::vector<std::string> words;            // --ssh-args
  int alive_interval = 5, alive_misses = 3;  // after which ssh gives a silent host up; seconds
};

/// The text as one word of a POSIX shell.
std::string shell_quoted(const std::string& text);

/// ssh's words for a host, "ssh" the first. What it runs there is the same for every job and every user's shell: a
/// shell that reads one line from stdin, and does what that says. So nothing of the job stands on a command line, and
/// no other shell than sh gets to see a quote.
std::vector<std::string> ssh_words(const Host& host, const SshSettings& settings);

/// That line, newline included: it runs this launcher's part on a host (`fabric ssh-host MARK`), found at `path`, where
/// this program is here, or on the search path. Where it is in neither place a packet line "missing" follows on stderr.
std::string line_to_find(const std::string& mark, const std::string& path);
/// The same with a program that comes along: it makes a folder, says "send" in a packet line, reads `size` bytes of
/// program, and runs them with the folder as one more word. The folder goes when that fails, else the program removes
/// it first of all.
std::string line_to_copy(const std::string& mark, std::size_t size);

/// What can be done about what ssh or the far shell said last; empty: nothing is known.
std::string advice_for(const std::string& said, const std::string& host);

}  // namespace fabric::run
