#include "plugins/loggers/csv_table.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <utility>

#include <fabric/base/atomic_file_internal.h>
#include <fabric/base/error.h>

namespace fabric {
namespace {

std::string cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// The next record of a file, quoted cells with line ends included. False at the end; a last record without a line end,
// as a kill in the middle of a write leaves, is dropped.
bool read_record(std::istream& in, std::vector<std::string>& cells) {
  cells.assign(1, "");
  bool quoted = false;
  for (int c; (c = in.get()) != EOF;) {
    if (quoted) {
      if (c != '"')
        cells.back() += static_cast<char>(c);
      else if (in.peek() == '"')
        cells.back() += static_cast<char>(in.get());
      else
        quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      cells.emplace_back();
    } else if (c == '\n') {
      return true;
    } else if (c != '\r') {
      cells.back() += static_cast<char>(c);
    }
  }
  return false;
}

template <class Cells>
std::string record(const Cells& cells) {
  std::string line;
  bool first = true;
  for (const auto& text : cells) {
    if (!std::exchange(first, false)) line += ',';
    line += cell(text);
  }
  return line + "\n";
}

std::vector<std::string> in_order(const CsvTable::Row& row, const std::set<std::string>& columns) {
  std::vector<std::string> cells;
  for (const auto& column : columns) {
    auto found = row.find(column);
    cells.push_back(found == row.end() ? "" : found->second);
  }
  return cells;
}

[[noreturn]] void fail(const std::filesystem::path& path) {
  throw Error("cannot write " + path.string() + ": " + std::strerror(errno));
}

void write_all(int fd, const std::string& text, const std::filesystem::path& path) {
  for (std::size_t done = 0; done < text.size();) {
    ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(path);
    done += n;
  }
}

struct Appended {
  int fd;
  explicit Appended(const std::filesystem::path& path)
      : fd(::open(path.c_str(), O_WRONLY | O_APPEND | O_NONBLOCK | O_CLOEXEC)) {
    if (fd < 0) fail(path);
  }
  ~Appended() { ::close(fd); }
  Appended(const Appended&) = delete;
  Appended& operator=(const Appended&) = delete;
};

}  // namespace

CsvTable::CsvTable(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code unknown;
  const auto found = std::filesystem::status(path_, unknown);
  if (std::filesystem::exists(found) && !std::filesystem::is_regular_file(found))
    throw Error(path_.string() +
                " is no regular file, and its rows must be read again. Move it away or choose another " + "version");
  std::ifstream in(path_, std::ios::binary);
  std::vector<std::string> header, cells;
  if (!in || !read_record(in, header)) return;
  columns_.insert(header.begin(), header.end());
  std::size_t step = std::find(header.begin(), header.end(), "step") - header.begin();
  if (step == header.size())
    throw Error(path_.string() + " was not written by this logger: it has no column 'step'. Move it away or choose " +
                "another version");
  std::streamoff whole = in.tellg();
  while (read_record(in, cells)) {
    whole = in.tellg();
    std::int64_t number = 0;
    if (step < cells.size() &&
        std::from_chars(cells[step].data(), cells[step].data() + cells[step].size(), number).ec == std::errc())
      last_step_ = number;
  }
  // Half a row at the end would be glued to the next one.
  std::error_code error;
  if (auto size = std::filesystem::file_size(path_, error); !error && static_cast<std::streamoff>(size) > whole)
    std::filesystem::resize_file(path_, whole, error);
  // Columns in another order than ours: bring them into ours.
  if (!std::is_sorted(header.begin(), header.end())) rewrite(columns_);
}

std::string CsvTable::lines(const std::vector<Row>& rows) const {
  std::string text;
  for (const auto& row : rows) text += record(in_order(row, columns_));
  return text;
}

void CsvTable::append(const std::vector<Row>& rows) {
  if (rows.empty()) return;
  auto wanted = columns_;
  for (const auto& row : rows)
    for (const auto& [column, value] : row) wanted.insert(column);
  if (wanted != columns_) rewrite(wanted);
  Appended file(path_);
  auto before = ::lseek(file.fd, 0, SEEK_END);
  try {
    write_all(file.fd, lines(rows), path_);
  } catch (const Error&) {
    // Rows written in part would stand there twice after the next try.
    [[maybe_unused]] int ignored = ::ftruncate(file.fd, before);
    throw;
  }
}

void CsvTable::rewrite(const std::set<std::string>& columns) {
  AtomicFile file(path_);
  file.write(record(columns));
  std::ifstream in(path_, std::ios::binary);
  std::vector<std::string> header, cells;
  if (in && read_record(in, header)) {
    while (read_record(in, cells)) {
      Row row;
      for (std::size_t i = 0; i < cells.size() && i < header.size(); ++i) row[header[i]] = cells[i];
      file.write(record(in_order(row, columns)));
    }
  }
  file.commit();
  columns_ = columns;
}

}  // namespace fabric
