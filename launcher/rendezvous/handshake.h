#pragma once

#include <string>
#include <string_view>

#include "launcher/rendezvous/secret.h"

namespace fabric::rendezvous {

/// What both ends of a connection do before the first message: each proves that it knows the key of the job, without
/// showing it. The rules are in fabric/docs/rendezvous_protocol.md. Knows neither sockets nor clocks: bytes go in, and
/// bytes come out. Invariants: nothing of a fixed size is ever exceeded, so a stranger costs 69 bytes; the end that
/// was connected to proves itself only to one that has done so.
class Handshake {
 public:
  enum class Role { client, server };  // who connects, and who listens
  enum class State {
    running,
    done,
    stranger,       // the other end speaks something else
    other_version,  // it is a launcher of another version
    refused         // it does not know the key of this job, or says that we do not
  };
  Handshake(Role role, const Key& job_key);

  State state() const { return state_; }
  /// So many bytes of the other end can be taken now.
  std::size_t wanted() const;
  void feed(std::string_view bytes);
  /// What is to be sent to the other end.
  std::string take_output();
  /// For the messages, once it is done.
  const Key& sending_key() const { return sending_; }
  const Key& receiving_key() const { return receiving_; }

 private:
  void advance();
  void take_greeting();
  void take_proof();
  void take_answer();
  Key derive(std::string_view label) const;
  void agree();

  enum class Step { greeting, proof, answer };
  Role role_;
  Key job_key_, own_nonce_, other_nonce_{}, sending_{}, receiving_{};
  State state_ = State::running;
  Step step_ = Step::greeting;
  std::string input_, output_;
};

}  // namespace fabric::rendezvous
