#include <fabric/base/rank_info.h>

#include <sstream>

namespace fabric {

std::string RankInfo::to_string() const {
  std::ostringstream text;
  text << "rank " << rank << " of " << world_size << ", local rank " << local_rank << " of " << local_world_size
       << ", node " << node_rank << " of " << num_nodes << ", main address ";
  if (main_address.empty())
    text << "unknown";
  else
    text << main_address << ':' << main_port;
  if (store_is_external) text << " (served by the launcher)";
  if (restart_count > 0) text << ", restart " << restart_count;
  text << ", environment " << source;
  if (!job.empty()) text << ", " << job;
  return text.str();
}

}  // namespace fabric
