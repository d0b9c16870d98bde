#include "strategies/ddp/replica_sync.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <sstream>
#include <string>

namespace fabric::ddp {
namespace {

constexpr std::int64_t kChunkBytes = 32 << 20;
constexpr std::int64_t kAlignment = 16;

std::string describe(const std::string& name, const at::Tensor& tensor) {
  std::ostringstream text;
  text << name << ' ' << tensor.scalar_type() << tensor.sizes()
       << (tensor.requires_grad() ? " that requires grad" : "");
  return text.str();
}

std::vector<std::string> describe(const torch::nn::Module& module) {
  std::vector<std::string> lines;
  for (const auto& item : module.named_parameters()) lines.push_back("parameter " + describe(item.key(), item.value()));
  for (const auto& item : module.named_buffers())
    if (item.value().defined()) lines.push_back("buffer " + describe(item.key(), item.value()));
  return lines;
}

std::int64_t fingerprint(const std::vector<std::string>& lines) {
  std::uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (const auto& line : lines)
    for (unsigned char c : line + '\n') hash = (hash ^ c) * 1099511628211ull;
  return static_cast<std::int64_t>(hash);
}

[[noreturn]] void report_difference(const std::vector<Value>& ranks) {
  const auto& first = ranks[0].as_list();
  for (std::size_t rank = 1; rank < ranks.size(); ++rank) {
    const auto& other = ranks[rank].as_list();
    for (std::size_t i = 0; i < std::max(first.size(), other.size()); ++i) {
      auto line = [&](const Value::List& list) {
        return i < list.size() ? list[i].as_string() : std::string("nothing more");
      };
      if (line(first) == line(other)) continue;
      throw MismatchError("the ranks set up different models; the first difference is number " + std::to_string(i) +
                          ": rank 0 has " + line(first) + ", rank " + std::to_string(rank) + " has " + line(other) +
                          ". Build the same module on every rank");
    }
  }
  throw MismatchError("the ranks set up different models");
}

at::Tensor bytes_of(const at::Tensor& tensor) { return tensor.reshape(-1).view(at::kByte); }

void broadcast_chunk(const std::vector<at::Tensor>& chunk, const ProcessGroup& group, int src) {
  std::vector<at::Tensor> parts;
  for (const auto& tensor : chunk) parts.push_back(bytes_of(tensor.contiguous()));
  at::Tensor message = parts.size() == 1 ? parts[0] : at::cat(parts);
  group.broadcast_(message, src);
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < chunk.size(); ++i) {
    std::int64_t size = parts[i].numel();
    at::Tensor received = message.narrow(0, offset, size);
    offset += size;
    if (group.rank() == src || received.data_ptr() == chunk[i].data_ptr()) continue;
    // By way of the tensor's own bytes: the message's parts are not aligned to its type.
    at::Tensor target = chunk[i].is_contiguous() ? chunk[i] : chunk[i].contiguous();
    bytes_of(target).copy_(received);
    if (!chunk[i].is_contiguous()) at::Tensor(chunk[i]).copy_(target);
  }
}

}  // namespace

void check_same_parameters(const torch::nn::Module& module, const ProcessGroup& group) {
  auto lines = describe(module);
  auto prints = group.all_gather_value(Value(fingerprint(lines)));
  bool equal = true;
  for (const auto& print : prints) equal &= print.as_int() == prints[0].as_int();
  if (equal) return;
  report_difference(group.all_gather_value(Value(Value::List(lines.begin(), lines.end()))));
}

void broadcast_tensors(const std::vector<at::Tensor>& tensors, const ProcessGroup& group, int src) {
  c10::NoGradGuard no_grad;
  std::vector<at::Tensor> chunk;
  std::int64_t bytes = 0;
  auto flush = [&] {
    if (!chunk.empty()) broadcast_chunk(chunk, group, src);
    chunk.clear();
    bytes = 0;
  };
  for (const auto& tensor : tensors) {
    if (!tensor.defined() || tensor.numel() == 0) continue;
    bool fits = chunk.empty() || (chunk.front().device() == tensor.device() &&
                                  bytes + static_cast<std::int64_t>(tensor.nbytes()) <= kChunkBytes);
    if (!fits) flush();
    chunk.push_back(tensor.detach());
    bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  flush();
}

std::vector<at::Tensor> all_tensors(const torch::nn::Module& module) {
  auto tensors = module.parameters();
  for (auto& buffer : module.buffers()) tensors.push_back(std::move(buffer));
  return tensors;
}

BufferSync::BufferSync(const std::vector<at::Tensor>& buffers, const ProcessGroup& group) : group_(group) {
  c10::NoGradGuard no_grad;
  std::vector<c10::Device> devices;
  for (const auto& buffer : buffers) {
    if (!buffer.defined() || buffer.numel() == 0) continue;
    std::size_t at = 0;
    while (at < devices.size() && devices[at] != buffer.device()) ++at;
    if (at == devices.size()) {
      devices.push_back(buffer.device());
      parts_.emplace_back();
    }
    parts_[at].slots.push_back({buffer, buffer.variable_data(), {}});
  }
  for (std::size_t at = 0; at < parts_.size(); ++at) {
    std::int64_t size = 0;
    auto padded = [](const at::Tensor& t) {
      return (static_cast<std::int64_t>(t.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
    };
    for (const auto& slot : parts_[at].slots) size += padded(slot.buffer);
    parts_[at].message = at::empty({size}, at::TensorOptions(at::kByte).device(devices[at]));
    std::int64_t offset = 0;
    for (auto& slot : parts_[at].slots) {
      at::Tensor part = parts_[at].message.narrow(0, offset, static_cast<std::int64_t>(slot.buffer.nbytes()));
      slot.view = part.view(slot.buffer.scalar_type()).view(slot.buffer.sizes());
      offset += padded(slot.buffer);
    }
  }
}

// Writes through aliases: buffers that a graph saved (running statistics) may change before its backward pass, as their
// values there are not used in training.
void BufferSync::broadcast(int src) {
  c10::NoGradGuard no_grad;
  for (auto& part : parts_) {
    for (auto& slot : part.slots) {
      if (slot.alias.data_ptr() != slot.buffer.data_ptr()) slot.alias = slot.buffer.variable_data();
      if (group_.rank() == src) slot.view.copy_(slot.alias);
    }
    std::vector<at::Tensor> tensors{part.message};
    c10d::BroadcastOptions options;
    options.rootRank = src;
    group_.wait_for("broadcast of buffers", group_.c10d()->broadcast(tensors, options));
    if (group_.rank() == src) continue;
    for (auto& slot : part.slots) slot.alias.copy_(slot.view);
  }
}

}  // namespace fabric::ddp
