#include <fabric/base/nearest_name.h>

#include <algorithm>
#include <cstddef>

namespace fabric {

std::string lower_case(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

namespace {

// What a careless writer does not tell apart: case, '-' against '_'.
std::string folded(std::string_view name) {
  std::string out = lower_case(std::string(name));
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

// Edit distance in which swapping two neighbours counts once; stops at `limit`.
std::size_t distance(const std::string& a, const std::string& b, std::size_t limit) {
  if (a.size() > b.size() + limit || b.size() > a.size() + limit) return limit + 1;
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    std::size_t best = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
      best = std::min(best, row[j]);
    }
    if (best > limit) return limit + 1;
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

}  // namespace

std::string nearest_name(std::string_view given, const std::vector<std::string>& valid) {
  constexpr std::size_t kLongest = 256;
  if (given.empty() || given.size() > kLongest) return {};
  const std::string wanted = folded(given);
  const std::string* nearest = nullptr;
  std::size_t best = std::max<std::size_t>(1, wanted.size() / 3) + 1;
  for (const std::string& name : valid) {
    if (name.empty() || name.size() > kLongest) continue;
    const std::string candidate = folded(name);
    const std::size_t edits = distance(wanted, candidate, best);
    if (edits < best && edits < std::max(wanted.size(), candidate.size())) {
      best = edits;
      nearest = &name;
    }
  }
  if (nearest) return *nearest;
  // A beginning of a name is near, too, when it fits only one: "single" for single_device.
  for (const std::string& name : valid) {
    if (wanted.size() < 2 || folded(name).compare(0, wanted.size(), wanted) != 0) continue;
    if (nearest) return {};
    nearest = &name;
  }
  return nearest ? *nearest : std::string();
}

std::string did_you_mean(std::string_view given, const std::vector<std::string>& valid) {
  if (valid.empty()) return "; there are none";
  const std::string nearest = nearest_name(given, valid);
  std::string out = nearest.empty() ? "; valid: " : "; did you mean '" + nearest + "'? Valid: ";
  for (std::size_t i = 0; i < valid.size(); ++i) out += (i == 0 ? "" : ", ") + valid[i];
  return out;
}

}  // namespace fabric
