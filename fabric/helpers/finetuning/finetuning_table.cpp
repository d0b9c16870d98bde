#include <algorithm>
#include <ostream>
#include <sstream>
#include <vector>

#include <fabric/helpers/finetuning/finetuning_scheduler_internal.h>

namespace fabric {
namespace {

using Row = std::vector<std::string>;

std::string with_commas(std::int64_t number) {
  const std::string digits = std::to_string(number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string ends(const FinetuningPhase& phase) {
  std::string text;
  if (phase.max_transition_epoch >= 0) text = "epoch " + std::to_string(phase.max_transition_epoch);
  if (phase.max_transition_step >= 0)
    text += (text.empty() ? "step " : ", step ") + std::to_string(phase.max_transition_step);
  return text.empty() ? "-" : text;
}

std::string first_and_last(const std::vector<std::string>& names) {
  if (names.empty()) return "-";
  if (names.size() == 1) return names.front();
  return names.front() + (names.size() > 2 ? " … " : ", ") + names.back();
}

// In characters, not bytes: the dots are one.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string lines_of(const std::vector<Row>& rows, const std::vector<bool>& right) {
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      std::string gap(widths[i] - width_of(row[i]), ' ');
      line += (i == 0 ? "" : "  ") + (right[i] ? gap + row[i] : row[i] + gap);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

}  // namespace

std::string FinetuningScheduler::table() const {
  const auto& it = *impl_;
  std::vector<Row> rows{{"phase", "", "tensors", "elements", "thawed", "lr", "ends before", "parameters"}};
  std::int64_t all = 0;
  for (const auto& name : it.parameters.names()) all += it.parameters.tensor(name).numel();
  for (std::size_t depth = 0; depth < it.schedule.size(); ++depth) {
    const auto& phase = it.schedule.phases[depth];
    const int at = static_cast<int>(depth);
    std::int64_t elements = 0, thawed = 0;
    for (const auto& name : phase.params) elements += it.parameters.tensor(name).numel();
    for (const auto& name : it.schedule.thawed_at(depth)) thawed += it.parameters.tensor(name).numel();
    std::ostringstream rate;
    if (phase.lr || (at > 0 && it.config.base_max_lr))
      rate << (phase.lr ? *phase.lr : *it.config.base_max_lr);
    else
      rate << (at == 0 ? "optimizer's" : "first group's");
    std::string state = it.generated_only     ? ""
                        : at > it.max_depth   ? "not trained"
                        : at < it.curr_depth  ? "done"
                        : at == it.curr_depth ? "now"
                                              : "";
    rows.push_back({std::to_string(depth), state, std::to_string(phase.params.size()), with_commas(elements),
                    std::to_string(all == 0 ? 0 : (100 * thawed + all / 2) / all) + "%", rate.str(), ends(phase),
                    first_and_last(phase.params)});
  }
  std::string out = lines_of(rows, {true, false, true, true, true, false, false, false});
  std::int64_t scheduled = 0;
  for (const auto& phase : it.schedule.phases)
    for (const auto& name : phase.params) scheduled += it.parameters.tensor(name).numel();
  return out + with_commas(all) + " elements in all, " + with_commas(std::max<std::int64_t>(all - scheduled, 0)) +
         " in no phase\n";
}

void FinetuningScheduler::print(std::ostream& out) const {
  if (impl_->peers.rank() == 0) out << table();
}

}  // namespace fabric
