#pragma once

#include <array>
#include <initializer_list>
#include <string>
#include <string_view>

// The secret of a job, and what is made of it. The cryptography is libsodium's: HMAC with SHA-256, random bytes, and a
// comparison in a time that does not tell how much was right.
namespace fabric::rendezvous {

using Key = std::array<unsigned char, 32>;
inline std::string_view as_text(const Key& key) { return {reinterpret_cast<const char*>(key.data()), key.size()}; }

/// HMAC-SHA-256 of the parts, one behind the other.
Key mac(std::string_view key, std::initializer_list<std::string_view> parts);
bool is_same(const Key& one, std::string_view other);
Key random_key();
std::string in_hex(const Key& key);

/// What the launchers of a job must have in common: the secret and the name of the job.
Key key_of_job(std::string_view secret, std::string_view run_id);

/// A secret out of a file; empty when there is none, or when others than this user could have written or read it.
std::string read_secret(const std::string& path);

/// The random secret of this user on this machine, made at first use: a file that nobody else may read, in
/// `home`/.config or $XDG_CONFIG_HOME. Empty when there is none and none can be made, or when others could have written
/// or read it.
std::string secret_of_user(const std::string& config_folder);

}  // namespace fabric::rendezvous
