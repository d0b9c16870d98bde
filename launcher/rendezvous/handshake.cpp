#include "launcher/rendezvous/handshake.h"

#include <algorithm>
#include <utility>

namespace fabric::rendezvous {
namespace {

constexpr std::string_view kName = "FAB";
constexpr char kVersion = '2', kYes = 'Y', kNo = 'N';
constexpr std::size_t kKeySize = std::tuple_size_v<Key>;
constexpr std::size_t kGreeting = kName.size() + 1 + kKeySize, kAnswer = 1 + kKeySize;

}  // namespace

Handshake::Handshake(Role role, const Key& job_key) : role_(role), job_key_(job_key), own_nonce_(random_key()) {
  output_.append(kName).append(1, kVersion).append(as_text(own_nonce_));
}

std::size_t Handshake::wanted() const {
  if (state_ != State::running) return 0;
  auto size = step_ == Step::greeting ? kGreeting : step_ == Step::proof ? kKeySize : kAnswer;
  return size - input_.size();
}

void Handshake::feed(std::string_view bytes) {
  input_.append(bytes.substr(0, wanted()));
  advance();
}

std::string Handshake::take_output() { return std::exchange(output_, {}); }

void Handshake::advance() {
  if (state_ != State::running) return;
  switch (step_) {
    case Step::greeting:
      return take_greeting();
    case Step::proof:
      if (input_.size() == kKeySize) take_proof();
      return;
    case Step::answer:
      return take_answer();
  }
}

void Handshake::take_greeting() {
  auto name = std::string_view(input_).substr(0, kName.size());
  if (name != kName.substr(0, name.size())) {
    state_ = State::stranger;
    return;
  }
  if (input_.size() > kName.size() && input_[kName.size()] != kVersion) {
    char version = input_[kName.size()];
    state_ = version >= '1' && version <= '9' ? State::other_version : State::stranger;
    return;
  }
  if (input_.size() < kGreeting) return;
  std::copy_n(input_.end() - kKeySize, kKeySize, other_nonce_.begin());
  input_.clear();
  if (role_ == Role::client) output_ += as_text(derive("client proof"));
  step_ = role_ == Role::client ? Step::answer : Step::proof;
}

void Handshake::take_proof() {
  bool is_right = is_same(derive("client proof"), input_);
  state_ = is_right ? State::done : State::refused;
  output_ += is_right ? kYes : kNo;
  if (!is_right) return;
  output_ += as_text(derive("server proof"));
  agree();
}

void Handshake::take_answer() {
  if (input_.empty()) return;
  if (input_[0] != kYes) {
    state_ = input_[0] == kNo ? State::refused : State::stranger;
    return;
  }
  if (input_.size() < kAnswer) return;
  bool is_right = is_same(derive("server proof"), std::string_view(input_).substr(1));
  state_ = is_right ? State::done : State::refused;
  if (is_right) agree();
}

Key Handshake::derive(std::string_view label) const {
  bool is_client = role_ == Role::client;
  return mac(as_text(job_key_), {"TorchFabric rendezvous 2 ", label, as_text(is_client ? own_nonce_ : other_nonce_),
                                 as_text(is_client ? other_nonce_ : own_nonce_)});
}

void Handshake::agree() {
  sending_ = derive("client messages");
  receiving_ = derive("server messages");
  if (role_ == Role::server) std::swap(sending_, receiving_);
  input_.clear();
}

}  // namespace fabric::rendezvous
