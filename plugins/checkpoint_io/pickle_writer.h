#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fabric::checkpoint {

/// Appends the operations of Python's pickle format, protocol 2.
class PickleWriter {
 public:
  PickleWriter() : out_("\x80\x02") {}
  std::string take() {
    out_ += '.';
    return std::move(out_);
  }

  void none() { out_ += 'N'; }
  void boolean(bool value) { out_ += value ? '\x88' : '\x89'; }
  void integer(std::int64_t value);
  void real(double value);
  /// UTF-8.
  void text(std::string_view value);
  void bytes(std::string_view value);
  void global(std::string_view module, std::string_view name);

  void mark() { out_ += '('; }
  void tuple() { out_ += 't'; }  // of what was added since the mark
  void empty_tuple() { out_ += ')'; }
  void empty_list() { out_ += ']'; }
  void append_since_mark() { out_ += 'e'; }
  void empty_dict() { out_ += '}'; }
  void set_items_since_mark() { out_ += 'u'; }
  void call() { out_ += 'R'; }
  void persistent() { out_ += 'Q'; }

 private:
  template <class Number>
  void raw(Number value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string out_;
};

}  // namespace fabric::checkpoint
