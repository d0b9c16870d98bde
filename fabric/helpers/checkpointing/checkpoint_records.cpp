#include <fabric/helpers/checkpointing/checkpoint_records.h>

#include <algorithm>
#include <cmath>

#include <fabric/base/error.h>

namespace fabric {
namespace {

constexpr double kInfiniteScore = std::numeric_limits<double>::infinity();

const Value& entry(const Value& state, const char* key) {
  if (const Value* found = state.find(key)) return *found;
  throw CheckpointKeyError(std::string("this is no state of a ModelCheckpoint: it has no '") + key + "'");
}

std::optional<double> optional_number(const Value& value) {
  return value.is_null() ? std::nullopt : std::optional(value.as_double());
}

}  // namespace

CheckpointRecords::CheckpointRecords(const std::string& mode) : lower_(mode == "min") { rank(0); }

bool CheckpointRecords::accepts(double score, int k) const {
  if (k < 0 || best_k.size() < static_cast<std::size_t>(k)) return true;
  return k > 0 && better(score, best_k[worst()].score);
}

std::size_t CheckpointRecords::worst() const {
  std::size_t at = 0;
  for (std::size_t i = 1; i < best_k.size(); ++i)
    if (better(best_k[at].score, best_k[i].score)) at = i;
  return at;
}

std::vector<std::filesystem::path> CheckpointRecords::evict_for_new(int k) {
  std::vector<std::filesystem::path> evicted;
  while (k > 0 && best_k.size() >= static_cast<std::size_t>(k)) {
    auto goes = best_k.begin() + static_cast<std::ptrdiff_t>(worst());
    evicted.push_back(goes->path);
    best_k.erase(goes);
  }
  return evicted;
}

void CheckpointRecords::admit(const std::filesystem::path& path, double score, int k) {
  if (std::isnan(score)) score = lower_ ? kInfiniteScore : -kInfiniteScore;
  std::erase_if(best_k, [&](const auto& known) { return known.path == path; });  // one that is written over
  current_score = score;
  best_k.push_back({path, score});
  rank(k);
}

void CheckpointRecords::drop(const std::filesystem::path& path, int k) {
  std::erase_if(best_k, [&](const auto& known) { return known.path == path; });
  rank(k);
}

void CheckpointRecords::rank(int k) {
  kth = {{}, lower_ ? kInfiniteScore : -kInfiniteScore};
  if (best_k.empty()) {
    best = {};
    return;
  }
  if (k < 0 || best_k.size() >= static_cast<std::size_t>(k)) kth = best_k[worst()];
  std::size_t first = 0;
  for (std::size_t i = 1; i < best_k.size(); ++i)
    if (better(best_k[i].score, best_k[first].score)) first = i;
  best = best_k[first];
}

Value CheckpointRecords::state_dict() const {
  Value::Map scores;
  for (const auto& known : best_k) scores.append(known.path.string(), known.score);
  auto number = [](const std::optional<double>& value) { return value ? Value(*value) : Value(); };
  return Value::Map{{"best_model_path", best.path.string()},
                    {"best_model_score", std::isnan(best.score) ? Value() : Value(best.score)},
                    {"kth_best_model_path", kth.path.string()},
                    {"kth_value", kth.score},
                    {"best_k_models", scores},
                    {"last_model_path", last_path.string()},
                    {"newest_path", newest_path.string()},
                    {"current_score", number(current_score)},
                    {"saved_step", saved_step}};
}

void CheckpointRecords::load_state_dict(const Value& state, int k) {
  CheckpointRecords read = *this;
  read.best_k.clear();
  for (const auto& [path, score] : entry(state, "best_k_models").as_map())
    read.best_k.push_back({path, score.as_double()});
  read.rank(k);
  if (read.best_k.empty()) {  // without `monitor` the best is the newest
    read.best.path = entry(state, "best_model_path").as_string();
    read.best.score =
        optional_number(entry(state, "best_model_score")).value_or(std::numeric_limits<double>::quiet_NaN());
  }
  read.last_path = entry(state, "last_model_path").as_string();
  read.newest_path = entry(state, "newest_path").as_string();
  read.current_score = optional_number(entry(state, "current_score"));
  read.saved_step = entry(state, "saved_step").as_int();
  *this = std::move(read);
}

}  // namespace fabric
