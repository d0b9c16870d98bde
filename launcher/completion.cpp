#include "launcher/completion.h"

#include <cstdio>

#include <fabric/base/nearest_name.h>

#include "launcher/run/options.h"

namespace fabric {
namespace {

constexpr const char* kCommands = "run doctor convert verify inspect consolidate shard completion help";

// Behind the program's name, the words are its own: files are offered.
std::string for_bash(const std::string& flags) {
  return R"(_fabric() {
  local word=${COMP_WORDS[COMP_CWORD]} first=1
  [[ ${COMP_WORDS[0]##*/} == fabricrun ]] && first=0
  if ((first == 1 && COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W ")" +
         std::string(kCommands) + R"(" -- "$word"))
  elif [[ $word == -* && ($first == 0 || ${COMP_WORDS[1]} == run) ]]; then
    COMPREPLY=($(compgen -W ")" +
         flags + R"(" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _fabric fabric fabricrun
)";
}

std::string for_fish(const std::vector<std::string>& flags) {
  std::string text = "complete -c fabric -n __fish_use_subcommand -f -a '" + std::string(kCommands) + "'\n";
  for (const auto& flag : flags) {
    text += "complete -c fabric -n '__fish_seen_subcommand_from run' -l " + flag.substr(2) + "\n";
    text += "complete -c fabricrun -l " + flag.substr(2) + "\n";
  }
  return text;
}

}  // namespace

int print_completion(const std::vector<std::string>& words) {
  auto shell = words.empty() ? std::string("bash") : words[0];
  std::string list;
  for (const auto& flag : run::flag_names()) list += (list.empty() ? "" : " ") + flag;
  std::string text;
  if (shell == "bash")
    text = for_bash(list);
  else if (shell == "zsh")
    text = "autoload -U +X bashcompinit && bashcompinit\n" + for_bash(list);
  else if (shell == "fish")
    text = for_fish(run::flag_names());
  else
    throw ConfigError("fabric completion: there is no shell '" + shell + "'" +
                      did_you_mean(shell, {"bash", "zsh", "fish"}));
  return std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0;
}

}  // namespace fabric
