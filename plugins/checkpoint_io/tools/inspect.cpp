// What a checkpoint holds, as text: its tensors in a table, and every value beside them under its path.
#include <algorithm>

#include "launcher/os/visible.h"
#include "plugins/checkpoint_io/tools/catalog.h"
#include "plugins/checkpoint_io/tools/tools.h"

namespace fabric::checkpoint {
namespace {

constexpr std::size_t kWidest = 60, kLongestValue = 300;

std::string sizes_text(const std::vector<std::int64_t>& sizes) {
  std::string out = "[";
  for (auto size : sizes) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

// The rows and columns of a box: [0:2, 0:5].
std::string box_text(const CatalogTensor::Box& box) {
  std::string out = "[";
  for (std::size_t d = 0; d < box.shape.size(); ++d)
    out += (d ? ", " : "") + std::to_string(box.offsets[d]) + ":" + std::to_string(box.offsets[d] + box.shape[d]);
  return out + "]";
}

std::string padded(std::string text, std::size_t width) {
  if (text.size() < width) text.resize(width, ' ');
  return text;
}

/// Rows of the same number of cells, each column as wide as it must be.
std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], std::min(row[i].size(), kWidest));
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) line += (i ? "  " : "") + padded(row[i], widths[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::vector<std::vector<std::string>> tensor_rows(const Catalog& catalog) {
  std::vector<std::vector<std::string>> rows{{"TENSOR", "TYPE", "SHAPE", "BYTES", "FILE", "AT BYTE", "BOX"}};
  for (const auto& tensor : catalog.tensors) {
    std::vector<std::string> row{visible(tensor.name), tensor.type, sizes_text(tensor.shape),
                                 std::to_string(tensor.bytes)};
    if (tensor.boxes.empty()) row.insert(row.end(), {"-", "-", ""});
    for (const auto& box : tensor.boxes) {
      row.resize(4);
      row.push_back(visible(catalog.files[box.bytes.file].filename().string()));
      row.push_back(std::to_string(box.bytes.begin));
      row.push_back(box.shape == tensor.shape ? "" : box_text(box));
      rows.push_back(row);
      row = {"", "", "", ""};
    }
    if (tensor.boxes.empty()) rows.push_back(row);
  }
  return rows;
}

bool fits_a_line(const Value& value) {
  if (value.is_map() || value.is<at::Tensor>()) return false;
  if (!value.is_list()) return true;
  return std::all_of(value.as_list().begin(), value.as_list().end(),
                     [](const Value& item) { return !item.is_list() && fits_a_line(item); });
}

void list_values(const Value& value, const std::string& path, std::vector<std::vector<std::string>>& rows) {
  auto below = [&](const std::string& key) { return path.empty() ? key : path + "." + key; };
  if (fits_a_line(value)) {
    auto text = visible(to_string(value));
    if (text.size() > kLongestValue) {
      std::size_t end = kLongestValue;
      while ((text[end] & 0xC0) == 0x80) --end;  // not in the middle of a character
      text = text.substr(0, end) + "…";
    }
    rows.push_back({visible(path), text});
  } else if (value.is_list()) {
    for (std::size_t i = 0; i < value.as_list().size(); ++i)
      list_values(value.as_list()[i], below(std::to_string(i)), rows);
  } else if (value.is_map()) {
    for (const auto& [key, item] : value.as_map()) list_values(item, below(key), rows);
  }
}

}  // namespace

std::string inspect_checkpoint(const std::filesystem::path& path) {
  const Catalog catalog = read_catalog(path);
  std::uint64_t bytes = 0;
  for (const auto& tensor : catalog.tensors) bytes += tensor.bytes;
  const bool sums = std::any_of(catalog.ranges.begin(), catalog.ranges.end(), [](const auto& r) { return r.sum; });
  std::string out = visible(path.string()) + ": " + catalog.format + ", " + std::to_string(catalog.files.size()) +
                    (catalog.files.size() == 1 ? " file, " : " files, ") + std::to_string(catalog.tensors.size()) +
                    (catalog.tensors.size() == 1 ? " tensor, " : " tensors, ") + std::to_string(bytes) + " bytes, " +
                    (sums ? "with" : "without") + " checksums\n";
  for (const auto& note : catalog.notes) out += visible(note) + "\n";
  for (const auto& fault : catalog.faults) out += "DAMAGED: " + visible(fault) + "\n";
  if (!catalog.tensors.empty()) out += "\n" + table(tensor_rows(catalog));
  std::vector<std::vector<std::string>> values{{"VALUE", ""}};
  if (!catalog.values.is_null()) list_values(catalog.values, "", values);
  if (values.size() > 1) out += "\n" + table(values);
  return out;
}

}  // namespace fabric::checkpoint
