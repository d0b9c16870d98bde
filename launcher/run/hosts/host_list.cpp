#include "launcher/run/hosts/host_list.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>

#include "plugins/environments/hostlist.h"

namespace fabric::run {
namespace {

constexpr int kMostSlots = 4096;
constexpr std::size_t kMostHosts = 4096;
constexpr std::size_t kLargestFile = 4 << 20;

int slots_of(const std::string& text, const std::string& where) {
  int number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 1 || number > kMostSlots)
    throw ConfigError(where + ": '" + text + "' is no number of ranks from 1 to " + std::to_string(kMostSlots));
  return number;
}

// At commas and white space that stand in no bracket.
std::vector<std::string> entries_of(const std::string& text) {
  std::vector<std::string> entries{""};
  int depth = 0;
  for (char letter : text) {
    depth += letter == '[' ? 1 : letter == ']' ? -1 : 0;
    bool separates = letter == ',' || letter == ' ' || letter == '\t' || letter == '\n' || letter == '\r';
    if (separates && depth <= 0)
      entries.emplace_back();
    else
      entries.back() += letter;
  }
  std::erase(entries, "");
  return entries;
}

// "[fd00::1]" and "user@[fd00::1]" are addresses, "[08-09]" is two hosts.
bool is_address_in_brackets(const std::string& name) {
  auto begin = name.find('[');
  bool is_first = begin == 0 || (begin != std::string::npos && name[begin - 1] == '@');
  return is_first && name.ends_with(']') && name.find(':', begin) != std::string::npos;
}

// A link may be named behind a percent sign.
bool is_ipv6(const std::string& address) {
  in6_addr bytes;
  return inet_pton(AF_INET6, address.substr(0, address.find('%')).c_str(), &bytes) == 1;
}

// What ssh would take for a flag, or no shell for one word.
void check_name(const std::string& name, const std::string& where) {
  bool is_plain =
      std::all_of(name.begin(), name.end(), [](unsigned char letter) { return letter > ' ' && letter != 127; });
  auto host = name.substr(name.rfind('@') + 1);
  if (host.empty() || !is_plain || name.starts_with("-") || host.starts_with("-") || name.starts_with("@"))
    throw ConfigError(where + ": '" + name + "' is no name of a host");
}

std::vector<std::string> names_of(const std::string& entry, const std::string& where) {
  bool is_address = is_address_in_brackets(entry) || std::count(entry.begin(), entry.end(), ':') > 1;
  if (is_address && !is_ipv6(bare_name({entry})))
    throw ConfigError(where + ": '" + entry + "' is no IPv6 address, and a name has no colon");
  auto names = is_address ? std::vector<std::string>{entry} : expand_hostlist(entry);
  for (const auto& name : names) check_name(name, where);
  return names;
}

/// "name:4" in two. An IPv6 address needs brackets before a number, as everywhere.
std::pair<std::string, std::string> split_slots(const std::string& entry) {
  auto colon = entry.rfind(':');
  bool is_address = std::count(entry.begin(), entry.end(), ':') > 1 && entry.find('[') == std::string::npos;
  if (colon == std::string::npos || is_address || entry.find(']', colon) != std::string::npos) return {entry, ""};
  return {entry.substr(0, colon), entry.substr(colon + 1)};
}

void add(std::vector<Host>& hosts, const Host& host) {
  auto same = std::find_if(hosts.begin(), hosts.end(), [&](const Host& other) { return other.name == host.name; });
  if (same == hosts.end()) {
    if (hosts.size() == kMostHosts) throw ConfigError("more than " + std::to_string(kMostHosts) + " hosts are listed");
    hosts.push_back(host);
    return;
  }
  // Named twice without a number is two ranks, as in Open MPI.
  same->slots = std::max(same->slots, 1) + std::max(host.slots, 1);
  same->max_slots = std::max(same->max_slots, host.max_slots);
}

void read_key(Host& host, const std::string& word, const std::string& where) {
  auto equal = word.find('=');
  auto key = word.substr(0, equal), value = equal == std::string::npos ? "" : word.substr(equal + 1);
  std::replace(key.begin(), key.end(), '-', '_');
  if (key == "slots")
    host.slots = slots_of(value, where);
  else if (key == "max_slots")
    host.max_slots = slots_of(value, where);
  else
    throw ConfigError(where + ": '" + word + "' is not known" + did_you_mean(key, {"slots", "max_slots"}) +
                      " A line is: host slots=4 max_slots=8");
}

// Blanks may stand around an equals sign.
std::vector<std::string> words_of_line(std::string line) {
  for (auto at = line.find('='); at != std::string::npos; at = line.find('=', at + 1)) {
    while (at + 1 < line.size() && isspace(static_cast<unsigned char>(line[at + 1]))) line.erase(at + 1, 1);
    while (at > 0 && isspace(static_cast<unsigned char>(line[at - 1]))) line.erase(--at, 1);
  }
  return entries_of(line);
}

}  // namespace

std::vector<Host> parse_hosts(const std::string& text) {
  std::vector<Host> hosts;
  for (const auto& entry : entries_of(text)) {
    auto [list, slots] = split_slots(entry);
    Host host;
    if (!slots.empty() || entry.ends_with(":")) host.slots = slots_of(slots, "--hosts " + entry);
    for (const auto& name : names_of(list, "--hosts " + entry)) {
      host.name = name;
      add(hosts, host);
    }
  }
  if (hosts.empty()) throw ConfigError("--hosts names no host");
  return hosts;
}

std::vector<Host> parse_hostfile(const std::string& text, const std::string& origin) {
  std::vector<Host> hosts;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    auto where = origin + ":" + std::to_string(++number);
    auto words = words_of_line(line.substr(0, line.find('#')));
    Host host;
    std::size_t named = 0;
    while (named < words.size() && words[named].find('=') == std::string::npos) ++named;
    if (named == 0 && !words.empty()) throw ConfigError(where + ": a line begins with the name of a host");
    for (auto word = named; word < words.size(); ++word) read_key(host, words[word], where);
    for (std::size_t word = 0; word < named; ++word) {
      auto [list, slots] = split_slots(words[word]);
      Host one = host;
      if (!slots.empty()) one.slots = slots_of(slots, where);
      if (one.max_slots > 0 && one.slots > one.max_slots)
        throw ConfigError(where + ": slots=" + std::to_string(one.slots) +
                          " is more than max_slots=" + std::to_string(one.max_slots));
      for (const auto& name : names_of(list, where)) {
        one.name = name;
        add(hosts, one);
      }
    }
  }
  if (hosts.empty()) throw ConfigError("--hostfile " + origin + " names no host");
  return hosts;
}

std::vector<Host> read_hostfile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) {
    text.resize(kLargestFile + 1);
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad() || (!file && !file.eof())) throw ConfigError("--hostfile " + path + ": it cannot be read");
  if (text.size() > kLargestFile) throw ConfigError("--hostfile " + path + ": it is larger than 4 MiB");
  return parse_hostfile(text, path);
}

std::string bare_name(const Host& host) {
  auto name = host.name.substr(host.name.rfind('@') + 1);
  return name.starts_with("[") && name.ends_with("]") ? name.substr(1, name.size() - 2) : name;
}

std::vector<std::string> split_words(const std::string& line, const std::string& flag) {
  std::vector<std::string> words;
  bool inside = false;
  char quote = 0;
  for (std::size_t i = 0; i < line.size(); ++i) {
    char letter = line[i];
    bool is_blank = letter == ' ' || letter == '\t' || letter == '\n';
    if (!quote && is_blank) {
      inside = false;
      continue;
    }
    if (!inside) words.emplace_back();
    inside = true;
    if (letter == '\\' && quote != '\'' && i + 1 < line.size())
      words.back() += line[++i];
    else if (quote ? letter == quote : letter == '\'' || letter == '"')
      quote = quote ? 0 : letter;
    else
      words.back() += letter;
  }
  if (quote) throw ConfigError(flag + " " + line + ": a quote is not closed");
  return words;
}

}  // namespace fabric::run
