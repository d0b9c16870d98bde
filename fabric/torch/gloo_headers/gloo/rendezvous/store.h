#pragma once
// The interface that LibTorch's wrapper of a c10d store overrides; the order of the virtual functions is Gloo's.
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace gloo::rendezvous {
class Store {
 public:
  using Bytes = std::vector<char>;
  using Keys = std::vector<std::string>;
  virtual ~Store();
  virtual void set(const std::string& key, const Bytes& value) = 0;
  virtual Bytes get(const std::string& key) = 0;
  virtual void wait(const Keys& keys) = 0;
  virtual void wait(const Keys& keys, const std::chrono::milliseconds& timeout);
  virtual bool has_v2_support();
  virtual std::vector<Bytes> multi_get(const Keys& keys);
  virtual void multi_set(const Keys& keys, const std::vector<Bytes>& values);
  virtual void append(const std::string& key, const Bytes& value);
  virtual std::int64_t add(const std::string& key, std::int64_t value);
};
}  // namespace gloo::rendezvous
