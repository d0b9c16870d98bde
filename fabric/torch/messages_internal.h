#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <vector>

// What LibTorch tells in words alone. Each function is one text that a LibTorch may change; contract_test.cpp provokes
// every one of them, with each LibTorch that is supported.
namespace fabric::torch_messages {

/// The part of a message that says what happened: without the backtrace after it, the source file before it and the
/// advice behind it.
std::string core(std::string_view message);
/// Whether a wait of Gloo, NCCL or a store ran out of time.
bool is_timeout(std::string_view message);
/// Whether the exception comes from communication, and not from the user's own code or an operator.
bool is_communication(const std::exception& error);
/// Whether an allocation failed, on the CPU or on a device.
bool lacks_memory(const std::exception& error);
/// The indices in the Reducer's message about parameters that got no gradient.
std::vector<std::size_t> indices_without_gradient(const std::string& message);

}  // namespace fabric::torch_messages
