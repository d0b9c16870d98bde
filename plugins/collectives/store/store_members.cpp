#include "plugins/collectives/store/store_members.h"

#include "launcher/os/visible.h"

namespace fabric::collectives {

std::string job_in_words(const std::string& job) { return job.empty() ? "a job without a name" : job; }

// What a client says of itself comes from anybody, and what it is told goes to every rank's log.
std::string StoreMembers::admit(const wire::Greeting& given) {
  auto client = given;
  client.who = visible(given.who);
  auto rank = "rank " + std::to_string(client.rank) + " (" + client.who + ")";
  auto server = "rank 0 of " + job_in_words(job_.job) + " (" + job_.who + ")";
  if (client.job != job_.job)
    return "two jobs use one port: " + server + " serves its store there, and " + rank + " of " +
           job_in_words(visible(client.job)) + " came to it. Give each job a MASTER_PORT of its own";
  if (client.world_size != job_.world_size)
    return "two jobs use one port, or the ranks are told different numbers: " + server + " has " +
           std::to_string(job_.world_size) + " ranks, and " + rank + " says that its job has " +
           std::to_string(client.world_size) + ". Give each job a MASTER_PORT of its own";
  if (client.restart_count != job_.restart_count)
    return server + " was restarted " + std::to_string(job_.restart_count) + " times, but " + rank + " " +
           std::to_string(client.restart_count) + " times: it belongs to another attempt. Restart all ranks together";
  if (client.rank < 0 || client.rank >= client.world_size)
    return rank + " cannot be in a job of " + std::to_string(client.world_size) + " ranks";
  if (!mixed_.empty()) return mixed_;
  auto [known, is_new] = ranks_.try_emplace(client.rank, client);
  if (is_new || known->second.token == client.token) return "";
  bool gathering = static_cast<std::int64_t>(ranks_.size()) < job_.world_size;
  auto twice = "rank " + std::to_string(client.rank) + " of " + job_in_words(job_.job) + " is there twice: as " +
               known->second.who + " and as " + client.who +
               ". Two jobs use one MASTER_PORT, or a process was started twice or on its own again; give each job a "
               "port of its own, and start all of a job's ranks together";
  // Of two that call themselves rank 0 the one that serves is it, whichever comes first.
  if (gathering && client.rank != 0) mixed_ = twice;
  return twice;
}

}  // namespace fabric::collectives
