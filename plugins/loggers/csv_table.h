#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace fabric {

/// A CSV file that rows are appended to. New columns rewrite it, under another name first, so that a kill at any moment
/// leaves a file with all earlier rows.
class CsvTable {
 public:
  using Row = std::map<std::string, std::string>;
  /// Takes over the columns of a file that is there. Throws Error when its first line has no column "step".
  explicit CsvTable(std::filesystem::path path);
  /// The step of the last row of the file that was there at the start.
  std::optional<std::int64_t> last_step() const { return last_step_; }
  /// Throws Error when the disk does not take them; the rows are then still the caller's to write.
  void append(const std::vector<Row>& rows);

 private:
  std::string lines(const std::vector<Row>& rows) const;
  void rewrite(const std::set<std::string>& columns);

  std::filesystem::path path_;
  std::set<std::string> columns_;
  std::optional<std::int64_t> last_step_;
};

}  // namespace fabric
