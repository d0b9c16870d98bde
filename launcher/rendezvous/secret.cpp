#include "launcher/rendezvous/secret.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include <fabric/base/error.h>

#include "launcher/os/descriptor.h"

namespace fabric::rendezvous {
namespace {

constexpr std::size_t kHexSize = 2 * std::tuple_size_v<Key>;

void require_sodium() {
  static const bool is_ready = sodium_init() >= 0;
  if (!is_ready) throw LaunchError("libsodium cannot be used on this machine: there are no random numbers");
}

const unsigned char* bytes_of(std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }

// Whole or not at all, and never in place of one that is there: of several launchers that begin at once one makes it.
void make_secret(const std::string& path) {
  auto fresh = path + "." + std::to_string(getpid());
  auto text = in_hex(random_key());
  Descriptor file(open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return;
  if (write_all(file.get(), text)) [[maybe_unused]]
    auto linked = link(fresh.c_str(), path.c_str());
  unlink(fresh.c_str());
}

}  // namespace

Key mac(std::string_view key, std::initializer_list<std::string_view> parts) {
  require_sodium();
  Key made{};
  static_assert(sizeof made == crypto_auth_hmacsha256_BYTES);
  crypto_auth_hmacsha256_state state;
  crypto_auth_hmacsha256_init(&state, bytes_of(key), key.size());
  for (auto part : parts) crypto_auth_hmacsha256_update(&state, bytes_of(part), part.size());
  crypto_auth_hmacsha256_final(&state, made.data());
  return made;
}

bool is_same(const Key& one, std::string_view other) {
  return other.size() == one.size() && sodium_memcmp(one.data(), other.data(), one.size()) == 0;
}

Key random_key() {
  require_sodium();
  Key key;
  randombytes_buf(key.data(), key.size());
  return key;
}

std::string in_hex(const Key& key) {
  std::string text(kHexSize + 1, '\0');
  sodium_bin2hex(text.data(), text.size(), key.data(), key.size());
  text.pop_back();
  return text;
}

Key key_of_job(std::string_view secret, std::string_view run_id) {
  return mac(secret, {"TorchFabric rendezvous 2 job", run_id});
}

std::string read_secret(const std::string& path) {
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat info;
  if (!file || fstat(file.get(), &info) != 0) return "";
  if (!S_ISREG(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 077) != 0) return "";
  char text[kHexSize];
  return read(file.get(), text, sizeof text) == static_cast<ssize_t>(sizeof text) ? std::string(text, sizeof text) : "";
}

std::string secret_of_user(const std::string& config_folder) {
  if (config_folder.empty()) return "";
  auto folder = config_folder + "/torchfabric", path = folder + "/rendezvous_secret";
  auto found = read_secret(path);
  if (!found.empty() || access(path.c_str(), F_OK) == 0) return found;
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  make_secret(path);
  return read_secret(path);
}

}  // namespace fabric::rendezvous
