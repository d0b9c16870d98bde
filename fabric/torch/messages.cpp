#include "fabric/torch/messages_internal.h"

#include <cstdlib>

#include <c10/util/Exception.h>

namespace fabric::torch_messages {

std::string core(std::string_view message) {
  message = message.substr(0, message.find_first_of("\r\n"));
  message = message.substr(0, message.find(". This is typically caused"));
  if (auto end = message.find(".cc:"); message.starts_with('[') && end != std::string_view::npos)
    if (auto bracket = message.find("] ", end); bracket != std::string_view::npos) message.remove_prefix(bracket + 2);
  return std::string(message);
}

bool is_timeout(std::string_view message) {
  return message.find("imed out") != std::string_view::npos || message.find("imeout") != std::string_view::npos;
}

// Backends throw plain exceptions whose texts alone tell where they come from.
bool is_communication(const std::exception& error) {
  if (dynamic_cast<const c10::DistError*>(&error)) return true;
  std::string_view text = error.what();
  for (std::string_view sign : {"gloo", "Gloo", "NCCL", "imed out", "Connection closed by peer", "Connection reset",
                                "Socket", "Broken pipe", "ProcessGroup"})
    if (text.find(sign) != std::string_view::npos) return true;
  return false;
}

// The CPU's allocator throws an error like any other.
bool lacks_memory(const std::exception& error) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error)) return true;
  auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  return from_torch &&
         std::string_view(from_torch->what_without_backtrace()).find("allocate memory") != std::string_view::npos;
}

std::vector<std::size_t> indices_without_gradient(const std::string& message) {
  std::vector<std::size_t> indices;
  std::size_t at = message.find("indices which did not receive grad");
  at = at == std::string::npos ? at : message.find(": ", at);
  if (at == std::string::npos) return indices;
  const char* text = message.c_str() + at + 2;
  for (char* end = nullptr;; text = end) {
    auto index = std::strtoul(text, &end, 10);
    if (end == text) return indices;
    indices.push_back(index);
  }
}

}  // namespace fabric::torch_messages
