#include <fabric/helpers/checkpointing/resume.h>

#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <set>
#include <tuple>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>
#include <fabric/base/log.h>
#include <fabric/fabric.h>
#include <fabric/helpers/checkpointing/checkpoint_target_internal.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>

namespace fabric {
namespace {

namespace fs = std::filesystem;

// How far a run is; -1 for what a file does not say.
struct Progress {
  std::int64_t epoch = -1, step = -1;
  auto operator<=>(const Progress&) const = default;
};

struct Candidate {
  fs::path path;
  Progress progress;
  struct timespec written {};
  std::pair<dev_t, ino_t> file{};
  bool link = false;
  bool is_readable = false;
  std::string problem;  // known without reading it
};

bool has_checkpoint_name(const fs::path& path) {
  static const std::set<std::string> kEndings{".safetensors", ".pt", ".pth", ".ckpt", ".bin"};
  return kEndings.contains(path.extension().string());
}

bool is_left_by_a_kill(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with('.') && name.find(".partial") != name.npos;
}

// "epoch=9" before "epoch=10".
bool natural_less(const std::string& a, const std::string& b) {
  auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (digit(a[i]) && digit(b[j])) {
      auto number = [&](const std::string& text, std::size_t& at) {
        std::size_t begin = at;
        while (at < text.size() && digit(text[at])) ++at;
        std::string digits = text.substr(begin, at - begin);
        return digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
      };
      std::string x = number(a, i), y = number(b, j);
      if (x != y) return std::pair(x.size(), x) < std::pair(y.size(), y);
    } else if (a[i] != b[j]) {
      return a[i] < b[j];
    } else {
      ++i, ++j;
    }
  }
  return a.size() - i < b.size() - j;
}

// Newest first; of two names for one file, the one that is no link.
bool comes_first(const Candidate& a, const Candidate& b) {
  auto time = [](const Candidate& c) { return std::tuple(c.written.tv_sec, c.written.tv_nsec); };
  if (time(a) != time(b)) return time(a) > time(b);
  if (a.link != b.link) return b.link;
  return natural_less(b.path.string(), a.path.string());
}

Candidate look_at(const fs::path& path) {
  Candidate found{.path = path};
  struct stat info {};
  found.link = fs::is_symlink(path);
  if (stat(path.c_str(), &info) != 0) {
    int error = errno;
    found.problem = found.link && error == ENOENT
                        ? "it is a link to '" + fs::read_symlink(path).string() + "', which is not there"
                        : std::strerror(error);
    lstat(path.c_str(), &info);
  }
  if (is_left_by_a_kill(path)) found.problem = "its writing was interrupted";
  found.written = info.st_mtim;
  found.file = {info.st_dev, info.st_ino};
  return found;
}

std::vector<Candidate> candidates_in(const fs::path& folder) {
  std::vector<Candidate> found;
  std::error_code error;
  if (!fs::exists(folder, error)) return found;
  fs::recursive_directory_iterator at(folder, error), end;
  for (; !error && at != end; at.increment(error)) {
    const fs::path& path = at->path();
    std::error_code ignored;
    if (at->is_directory(ignored)) {
      const bool checkpoint = fs::exists(path / "index.json", ignored) && !is_left_by_a_kill(path);
      if (checkpoint) found.push_back(look_at(path));
      // What is inside of a checkpoint, or of the folder of a killed save, is no checkpoint.
      if (checkpoint || is_left_by_a_kill(path)) at.disable_recursion_pending();
      if (checkpoint || !at->is_symlink(ignored)) continue;
    }
    if (has_checkpoint_name(path) || is_left_by_a_kill(path)) found.push_back(look_at(path));
  }
  if (error) throw CheckpointError("cannot look for checkpoints in '" + folder.string() + "': " + error.message());
  std::sort(found.begin(), found.end(), comes_first);
  return found;
}

void take_larger(std::int64_t& number, const Value& map, const char* key) {
  const Value* found = map.find(key);
  if (found && found->is_int()) number = std::max(number, found->as_int());
}

Progress progress_in(const Value& checkpoint) {
  Progress progress;
  if (!checkpoint.is_map()) return progress;
  for (const char* key : {"step", "global_step"}) take_larger(progress.step, checkpoint, key);
  take_larger(progress.epoch, checkpoint, "epoch");
  for (const auto& [key, entry] : checkpoint.as_map()) {
    if (!entry.is_map() || !entry.find("dirpath") || !entry.find("validations")) continue;  // a ModelCheckpoint's state
    take_larger(progress.step, entry, "step");
    take_larger(progress.epoch, entry, "epoch");
  }
  return progress;
}

// What its header says of it. A format of the program's own has none that is known here.
void look_inside(Candidate& candidate) {
  candidate.is_readable = false;
  if (!candidate.problem.empty()) return;
  try {
    candidate.progress = progress_in(peek_checkpoint(candidate.path));
    candidate.is_readable = true;
  } catch (const Error&) {  // told when it comes to loading it
  }
}

// Empty when all is well.
std::string problem_with(const Candidate& candidate, CheckpointIO& io, const std::vector<std::string>& keys) {
  if (!candidate.problem.empty()) return candidate.problem;
  try {
    Value checkpoint = io.open(candidate.path);
    for (const auto& key : keys)
      if (!checkpoint.find(key)) return "it has no '" + key + "'";
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

bool is_newer(const Candidate& a, const Candidate& b) {
  return std::pair(a.written.tv_sec, a.written.tv_nsec) > std::pair(b.written.tv_sec, b.written.tv_nsec);
}

ResumePoint look_for_latest(const fs::path& folder, CheckpointIO& io, const std::vector<std::string>& keys) {
  ResumePoint point;
  std::vector<Candidate> candidates;
  std::set<std::pair<dev_t, ino_t>> seen;
  for (auto& candidate : candidates_in(folder)) {
    if (!seen.insert(candidate.file).second) continue;
    look_inside(candidate);
    candidates.push_back(std::move(candidate));
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.progress > b.progress; });
  auto skip = [&](const Candidate& candidate, const std::string& problem) {
    point.skipped.push_back({candidate.path, problem});
    log::warn("resuming: '" + candidate.path.string() + "' is passed over: " + problem);
  };
  auto at = candidates.begin();
  for (; at != candidates.end() && point.path.empty(); ++at)
    if (auto problem = problem_with(*at, io, keys); problem.empty())
      point.path = at->path;
    else
      skip(*at, problem);
  // How far those are whose headers cannot be read is not known; they may be newer.
  for (auto rest = at; rest != candidates.end(); ++rest)
    if (!rest->is_readable && is_newer(*rest, *std::prev(at)))
      if (auto problem = problem_with(*rest, io, keys); !problem.empty()) skip(*rest, problem);
  return point;
}

ResumePoint look_together(const fs::path& folder, const Peers& peers, CheckpointIO& io,
                          const std::vector<std::string>& keys) {
  if (auto why = why_not_local(folder); !why.empty()) throw ConfigError("resuming: " + why);
  Value found = on_rank_zero(peers, "resume_latest", [&]() -> Value {
    ResumePoint point = look_for_latest(folder, io, keys);
    Value::List skipped;
    for (const auto& [path, reason] : point.skipped) skipped.push_back(Value::List{path.string(), reason});
    return Value::List{point.path.string(), skipped};
  });
  ResumePoint point{.path = found.as_list()[0].as_string()};
  for (const auto& item : found.as_list()[1].as_list())
    point.skipped.push_back({item.as_list()[0].as_string(), item.as_list()[1].as_string()});
  return point;
}

}  // namespace

ResumePoint resume_latest(const fs::path& folder, const Fabric& fabric, const std::vector<std::string>& keys) {
  return look_together(folder, Peers(fabric), *fabric.strategy()->checkpoint_io(), keys);
}

ResumePoint resume_latest(const fs::path& folder, const Peers& peers, const std::vector<std::string>& keys) {
  return look_together(folder, peers, *make_checkpoint_io(), keys);
}

}  // namespace fabric
