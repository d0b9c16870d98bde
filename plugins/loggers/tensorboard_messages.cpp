#include "plugins/loggers/tensorboard_messages.h"

#include <chrono>

#include "plugins/loggers/flat_hparams.h"

namespace fabric::tensorboard {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// Field numbers are those of tensorboard/compat/proto and tensorboard/plugins/hparams.
Message metadata(const std::string& plugin, const Message& content) {
  return Message().message(1, Message().bytes(1, plugin).message(2, content));
}

Message hparams_value(const std::string& tag, int field, const Message& content) {
  // Version 0 of the plug-in's data; `field` says which message it holds.
  Message data;
  data.varint(1, 0).message(field, content);
  return Message().bytes(1, tag).message(9, metadata("hparams", data));
}

enum DataType { kString = 1, kBool = 2, kFloat = 3 };

DataType type_of(const Tree& value) { return value.is_bool() ? kBool : value.is_number() ? kFloat : kString; }

Message proto_value(const Tree& value) {
  if (value.is_bool()) return Message().varint(4, value.as_bool());
  if (value.is_number()) return Message().float64(2, value.as_double());
  return Message().bytes(3, value.is_string() ? value.as_string() : "null");
}

}  // namespace

Message scalar(const std::string& tag, double value) {
  return Message().bytes(1, tag).float32(2, static_cast<float>(value));
}

Message text(const std::string& tag, const std::string& content) {
  constexpr int kStringTensor = 7;
  Message shape = Message().message(2, Message().varint(1, 1));
  Message tensor = Message().varint(1, kStringTensor).message(2, shape).bytes(8, content);
  return Message().bytes(1, tag + "/text_summary").message(9, metadata("text", {})).message(8, tensor);
}

Message experiment(const Tree& params, const Metrics& metrics) {
  Message content;
  content.float64(3, now());
  for (const auto& [name, value] : flat_hparams(params))
    content.message(4, Message().bytes(1, name).varint(4, type_of(value)));
  for (const auto& [name, value] : metrics) content.message(5, Message().message(1, Message().bytes(2, name)));
  return hparams_value("_hparams_/experiment", 2, content);
}

Message session_start(const Tree& params) {
  Message content;
  for (const auto& [name, value] : flat_hparams(params))
    content.message(1, Message().bytes(1, name).message(2, proto_value(value)));
  content.float64(5, now());
  return hparams_value("_hparams_/session_start_info", 3, content);
}

Message session_end(bool success) {
  constexpr int kSuccess = 1, kFailure = 2;
  return hparams_value("_hparams_/session_end_info", 4,
                       Message().varint(1, success ? kSuccess : kFailure).float64(2, now()));
}

}  // namespace fabric::tensorboard
