#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fabric::checkpoint {

/// Appends the operations of Python's pickle format, protocol 2.
class PickleWriter {
 public:
  PickleWriter() : out_("\x80\x02") {}
  /// Throws CheckpointError for more than the reader takes.
  std::string take();

  void none() { node('N'); }
  void boolean(bool value) { node(value ? '\x88' : '\x89'); }
  void integer(std::int64_t value);
  void real(double value);
  /// UTF-8.
  void text(std::string_view value);
  void bytes(std::string_view value);
  void global(std::string_view module, std::string_view name);

  void mark() { out_ += '('; }
  void tuple() { node('t'); }  // of what was added since the mark
  void empty_tuple() { node(')'); }
  void empty_list() { node(']'); }
  void append_since_mark() { out_ += 'e'; }
  void empty_dict() { node('}'); }
  void set_items_since_mark() { out_ += 'u'; }
  void call() { node('R'); }
  void persistent() { node('Q'); }

 private:
  /// An operation for which the reader makes one of its nodes.
  void node(char operation) {
    out_ += operation;
    ++nodes_;
  }
  template <class Number>
  void raw(Number value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string out_;
  std::size_t nodes_ = 0;
};

}  // namespace fabric::checkpoint
