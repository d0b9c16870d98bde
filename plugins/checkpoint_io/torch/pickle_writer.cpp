#include "plugins/checkpoint_io/torch/pickle_writer.h"

#include <bit>
#include <utility>

#include <fabric/base/error.h>

#include "plugins/checkpoint_io/torch/pickle_reader.h"

namespace fabric::checkpoint {

std::string PickleWriter::take() {
  out_ += '.';
  if (nodes_ > kMostValues || out_.size() > kMostPickleBytes)
    throw CheckpointError("the checkpoint's names and values beside tensors, " + std::to_string(nodes_) + " of " +
                          std::to_string(out_.size()) + " bytes, are more than can be read again, " +
                          std::to_string(kMostValues) + " of " + std::to_string(kMostPickleBytes) +
                          " bytes. Keep large data in tensors");
  return std::move(out_);
}

void PickleWriter::integer(std::int64_t value) {
  if (value >= INT32_MIN && value <= INT32_MAX) {
    node('J');
    raw(static_cast<std::int32_t>(value));
  } else {
    node('\x8a');
    out_ += '\x08';
    raw(value);
  }
}

void PickleWriter::real(double value) {
  node('G');
  auto bits = std::bit_cast<std::uint64_t>(value);
  for (int shift = 56; shift >= 0; shift -= 8) out_ += static_cast<char>(bits >> shift & 0xFF);
}

void PickleWriter::text(std::string_view value) {
  node('X');
  raw(static_cast<std::uint32_t>(value.size()));
  out_ += value;
}

// Protocol 2 has no bytes: they are text of the same code points, encoded back by a function that PyTorch allows.
void PickleWriter::bytes(std::string_view value) {
  std::string encoded;
  for (unsigned char c : value) {
    if (c < 0x80) {
      encoded += static_cast<char>(c);
    } else {
      encoded += static_cast<char>(0xC0 | c >> 6);
      encoded += static_cast<char>(0x80 | (c & 0x3F));
    }
  }
  global("_codecs", "encode");
  mark();
  text(encoded);
  text("latin1");
  tuple();
  call();
}

void PickleWriter::global(std::string_view module, std::string_view name) {
  node('c');
  out_ += module;
  out_ += '\n';
  out_ += name;
  out_ += '\n';
}

}  // namespace fabric::checkpoint
