// What each worker of an attempt gets: streams, the socket of its heartbeats, variables, arguments, processors.
#include <sys/socket.h>

#include <algorithm>

#include "launcher/run/attempt.h"
#include "launcher/run/machine.h"

namespace fabric::run {

std::vector<WorkerStart> Attempt::prepare(std::vector<Descriptor>& kept) {
  std::vector<WorkerStart> starts;
  const auto& options = context_.options;
  auto shown = parse_ranks(options.local_ranks_filter, "--local-ranks-filter");
  auto keep = [&](Descriptor&& descriptor) {
    kept.push_back(std::move(descriptor));
    return kept.back().get();
  };
  for (int i = 0; i < context_.job.local_size; ++i) {
    auto folder = context_.folders.of_worker(attempt_.number, i);
    WorkerEnd end{.rank = context_.job.first_rank + i, .local_rank = i};
    if (!folder.empty()) end.error_path = folder + "/error.json";
    bool is_mpirun = options.mpi_ranks > 0;
    auto prefix = is_mpirun ? std::string() : line_prefix(options, context_.job, i, context_.prefix_template);
    int redirects = streams_of(options.redirects, i, "--redirects"), tee = streams_of(options.tee, i, "--tee");
    bool is_shown = shown.empty() || std::find(shown.begin(), shown.end(), i) != shown.end();
    WorkerStart start;
    Worker worker{.heartbeats =
                      Heartbeats({options.heartbeat_timeout, options.heartbeat_warmup, options.progress_timeout})};
    int room = 0;
    for (int stream = 0; stream < 2; ++stream) {
      auto pipe = make_pipe();
      int bit = 1 << stream;
      auto& sink = stream == 0 ? context_.console.out() : context_.console.error();
      bool to_console = is_shown && (!(redirects & bit) || (tee & bit));
      // Files stay free of what is written over itself.
      bool to_file = ((redirects | tee) & bit) && !folder.empty();
      if (stream == 1 && to_console && !to_file) room = context_.console.columns() - static_cast<int>(prefix.size());
      auto made = std::make_unique<WorkerStream>(std::move(pipe.read), to_console ? &sink : nullptr, prefix);
      if (to_file) made->write_to(folder + (stream == 0 ? "/stdout.log" : "/stderr.log"), context_.console);
      watch(made->fd(), stream == 0 ? Source::output : Source::error, static_cast<std::size_t>(i));
      (stream == 0 ? worker.output : worker.error) = std::move(made);
      (stream == 0 ? start.output : start.error) = keep(std::move(pipe.write));
    }
    int ends[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) above_stdio(-1, "heartbeats");
    start.heartbeat = keep(above_stdio(ends[1], "heartbeats"));
    worker.heartbeat_socket = above_stdio(ends[0], "heartbeats");
    start.heartbeat_number = context_.heartbeat_number;
    watch(worker.heartbeat_socket.get(), Source::heartbeat, static_cast<std::size_t>(i));

    auto variables = context_.variables;
    if (is_mpirun) {
      variables["TORCHELASTIC_RESTART_COUNT"] = std::to_string(attempt_.number);
    } else {
      add_place(variables, context_.job, options, i, attempt_.number, end.error_path);
      variables["FABRIC_HEARTBEAT_FD"] = std::to_string(start.heartbeat_number);
      if (room > 0) variables["FABRIC_PROGRESS_COLUMNS"] = std::to_string(room);
    }
    for (const auto& [name, value] : variables) start.variables.push_back(name + "=" + value);
    start.path = context_.program.path;
    start.arguments = substitute_local_rank(context_.program.arguments, i);
    start.workdir = options.workdir;
    start.processors = processors_for(options.bind_to, i, context_.job.local_size);
    starts.push_back(std::move(start));
    workers_.push_back(std::move(worker));
    attempt_.workers.push_back(std::move(end));
  }
  return starts;
}

}  // namespace fabric::run
