#include "launcher/run/hosts/ssh_command.h"

#include <algorithm>
#include <string_view>

#include "launcher/run/hosts/packet.h"

namespace fabric::run {
namespace {

constexpr const char* kConnectLimit = "ConnectTimeout=20";

// No character in it means something else in csh or fish than in sh.
constexpr const char* kFarCommand = R"(exec sh -c 'IFS= read -r line && eval "$line"')";

std::string without_newline(std::string line) {
  line.pop_back();
  return line;
}

}  // namespace

std::string shell_quoted(const std::string& text) {
  std::string word = "'";
  for (char letter : text) word += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
  return word + "'";
}

std::vector<std::string> ssh_words(const Host& host, const SshSettings& settings) {
  // ssh takes the first value that it is given: what must be stands before --ssh-args, what may be changed behind.
  std::vector<std::string> words{"ssh", "-o", "BatchMode=yes", "-o", "RemoteCommand=none"};
  words.insert(words.end(), settings.words.begin(), settings.words.end());
  // A connection that this one would leave open for others to share outlives it.
  for (const auto& option :
       {std::string("ControlMaster=no"), std::string("ClearAllForwardings=yes"), std::string(kConnectLimit),
        "ServerAliveInterval=" + std::to_string(settings.alive_interval),
        "ServerAliveCountMax=" + std::to_string(settings.alive_misses)})
    words.insert(words.end(), {"-o", option});
  auto at = host.name.rfind('@');
  if (at != std::string::npos) words.insert(words.end(), {"-l", host.name.substr(0, at)});
  words.insert(words.end(), {"-T", "-x", "--", bare_name(host), kFarCommand});
  return words;
}

std::string line_to_find(const std::string& mark, const std::string& path) {
  auto missing = without_newline(packet_line(mark, {"missing"}));
  // The line is one line; a folder with a newline in its name is found on the search path or not at all.
  auto here = path.find('\n') == std::string::npos ? path : "";
  return "for f in " + shell_quoted(here) + R"sh( "$(command -v fabric)"; do )sh" +
         R"sh([ -f "$f" ] && [ -x "$f" ] && exec "$f" ssh-host )sh" + mark + "; done; echo " + missing +
         " >&2; exit 127\n";
}

std::string line_to_copy(const std::string& mark, std::size_t size) {
  auto send = without_newline(packet_line(mark, {"send"})), bytes = std::to_string(size);
  return R"sh(d=$(mktemp -d "${TMPDIR:-/tmp}/fabric-copy-XXXXXX") || exit 125; trap 'rm -rf "$d"' EXIT; )sh"
         R"sh(trap 'exit 125' HUP INT PIPE TERM; echo )sh" +
         send + R"sh( >&2; head -c )sh" + bytes + R"sh( >"$d/fabric"; [ "$(wc -c <"$d/fabric")" -eq )sh" + bytes +
         R"sh( ] || { echo "the program did not arrive whole" >&2; exit 125; }; )sh"
         R"sh(chmod 700 "$d/fabric" && "$d/fabric" --version >/dev/null || exit 126; )sh"
         R"sh(exec "$d/fabric" ssh-host )sh" +
         mark + " \"$d\"\n";
}

std::string advice_for(const std::string& said, const std::string& host) {
  auto has = [&](std::string_view part) { return said.find(part) != std::string::npos; };
  if (has("REMOTE HOST IDENTIFICATION HAS CHANGED"))
    return "its key is another one than before: find out why, then remove the old one with ssh-keygen -R " + host;
  if (has("Host key verification failed") || has("host key is known for"))
    return "ssh does not know its key: connect by hand once, ssh " + host + ", and compare the fingerprint";
  if (has("Permission denied (") || has("Too many authentication failures"))
    return "ssh must get in without asking: a key in the agent (ssh-add) or without a passphrase, and the public one "
           "in "
           "authorized_keys there; see ssh -o BatchMode=yes " +
           host + " true";
  if (has("Could not resolve hostname"))
    return "no machine has this name here; see also Host and HostName in ssh_config(5)";
  if (has("Connection refused") || has("timed out") || has("No route to host") || has("Network is unreachable"))
    return "is the machine up, and does its sshd listen there? --ssh-args \"-p PORT\" names another port";
  if (has("Exec format error")) return "that program is made for another kind of machine";
  if (has("Permission denied") || has("noexec"))
    return "may programs run in its temporary folder? TMPDIR names another";
  if (has("there is no command 'ssh-host'")) return "the program there is too old; --copy brings this one along";
  return "";
}

}  // namespace fabric::run
