#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "plugins/collectives/shm/bell.h"

namespace fabric::collectives {

/// Sends and receives between ranks that share memory: a ring of bytes for each pair, in which messages follow one
/// another whole, each behind its tag and size. Nothing moves by itself: every look at a message that is under way, and
/// every long wait of this rank (SharedMemoryBarrier::Others::meanwhile), moves all that can be moved. Used by one
/// thread.
///
/// Invariants: `written` and `read` of a ring only grow; the sender alone writes the first, the receiver the second;
/// messages of one pair arrive in the order of their sends; of several receives that fit, the first posted gets it. Who
/// writes rings for the receiver. Who finds no room says so (`full`) before its last look at `read`, and who reads
/// looks at that afterwards and rings: so nobody sleeps beside a ring of bytes in which it could go on.
class Mailbox {
 public:
  struct Message;  // one that is sent or waited for

  /// `memory`: bytes_for(size), shared and zero at first. `bell`: that of the same ranks.
  Mailbox(int rank, int size, void* memory, Bell& bell);
  ~Mailbox();
  static std::size_t bytes_for(int size);

  std::shared_ptr<Message> send(const at::Tensor& tensor, int to, int tag);
  /// `from` -1: any rank.
  std::shared_ptr<Message> receive(const at::Tensor& tensor, int from, int tag);
  /// Moves what can be moved now.
  void move();
  bool is_done(const Message& message) const;
  /// Throws MismatchError where the message was larger than the tensor for it.
  int source_of(const Message& message) const;

 private:
  struct Header {
    std::int64_t tag = 0, bytes = 0;
  };
  struct Ring;
  struct Incoming;  // what is being read from one rank

  Ring& ring(int from, int to) const;
  bool push(Ring& ring, const void* bytes, std::size_t size, std::size_t& done) const;
  void write_to(int rank);
  void read_from(int rank);
  void deliver(Incoming& from, int rank);
  std::list<std::shared_ptr<Message>>::iterator first_that_fits(int from, std::int64_t tag);

  int rank_;
  int size_;
  char* memory_;
  Bell& bell_;
  std::vector<std::deque<std::shared_ptr<Message>>> outgoing_;  // by receiver
  std::vector<std::unique_ptr<Incoming>> incoming_;             // by sender
  std::list<std::shared_ptr<Message>> posted_;
};

}  // namespace fabric::collectives
