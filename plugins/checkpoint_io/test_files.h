#pragma once

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <fabric/base/value.h>

namespace checkpoint_test {

/// A folder that goes with the test; in memory where there is such a place, so that a busy disk does not slow the
/// tests.
class Folder {
 public:
  Folder() {
    std::filesystem::path below = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string pattern = (below / "fabric-test-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("cannot make " + pattern);
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) out.push_back(entry.path().filename());
    return out;
  }

 private:
  std::filesystem::path path_;
};

/// A file that Python wrote (tests/parity/make_checkpoints.py).
inline std::filesystem::path fixture(const std::string& name) {
  return std::filesystem::path(FABRIC_CHECKPOINT_FIXTURES) / name;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// Equal to the last bit, kinds and order of keys included.
inline bool same(const fabric::Value& a, const fabric::Value& b) {
  using fabric::Value;
  if (a.variant().index() != b.variant().index()) return false;
  if (a.is<at::Tensor>()) {
    const auto &x = a.as<at::Tensor>(), &y = b.as<at::Tensor>();
    if (!x.defined() || !y.defined()) return x.defined() == y.defined();
    if (x.scalar_type() != y.scalar_type() || x.sizes() != y.sizes()) return false;
    auto p = x.cpu().contiguous().resolve_conj(), q = y.cpu().contiguous().resolve_conj();
    return p.numel() == 0 || std::memcmp(p.const_data_ptr(), q.const_data_ptr(), p.nbytes()) == 0;
  }
  if (a.is_double()) {
    double x = a.as_double(), y = b.as_double();
    return (x != x && y != y) || std::memcmp(&x, &y, sizeof x) == 0;
  }
  if (a.is_list()) {
    if (a.as_list().size() != b.as_list().size()) return false;
    for (std::size_t i = 0; i < a.as_list().size(); ++i)
      if (!same(a.as_list()[i], b.as_list()[i])) return false;
    return true;
  }
  if (a.is_map()) {
    if (a.as_map().size() != b.as_map().size()) return false;
    for (auto x = a.as_map().begin(), y = b.as_map().begin(); x != a.as_map().end(); ++x, ++y)
      if (x->first != y->first || !same(x->second, y->second)) return false;
    return true;
  }
  if (a.is_null()) return true;
  if (a.is_bool()) return a.as_bool() == b.as_bool();
  if (a.is_int()) return a.as_int() == b.as_int();
  return a.as_string() == b.as_string();
}

}  // namespace checkpoint_test
