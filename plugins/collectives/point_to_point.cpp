// Send and receive. With the check on, a record of type and shape goes ahead of each tensor; the receiver compares.
#include <fabric/plugins/collectives/process_group.h>

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include "fabric/base/value_codec_internal.h"
#include "plugins/collectives/check.h"
#include "plugins/collectives/group.h"
#include "plugins/collectives/reducible.h"
#include "plugins/collectives/shapes.h"

namespace fabric {

using namespace collectives;

namespace {

void require_other(const Group& group, const char* operation, const char* what, int rank, int tag) {
  group.health.require_usable(operation);
  require_rank(operation, what, rank, group.id.size);
  if (rank == group.id.rank)
    throw MisuseError(std::string(operation) + ": " + what + " is this rank itself (" + std::to_string(rank) +
                      "); copy the tensor instead");
  if (tag < 0)
    throw MisuseError(std::string(operation) + ": the tag is " + std::to_string(tag) + "; it has to be 0 or more");
}

std::string place(int from, int to, int tag) {
  return " from rank " + std::to_string(from) + " to rank " + std::to_string(to) + ", tag " + std::to_string(tag);
}

}  // namespace

void ProcessGroup::send(const at::Tensor& tensor, int dst, int tag) const {
  auto& group = use("send");
  require_dense("send", tensor);
  require_other(group, "send", "dst", dst, tag);
  at::AutoGradMode no_grad(false);
  auto bytes = bytes_of(group.transport.needs_staging(tensor) ? tensor.cpu() : tensor);
  c10::intrusive_ptr<c10d::Work> record_work;
  group.run_between_two("send", [&] {
    if (group.id.config.check) {
      std::vector<at::Tensor> record{shape_record("send", tensor)};
      record_work = group.transport.cpu->c10d()->send(record, dst, tag);
    }
    if (bytes.numel() == 0) return std::exchange(record_work, nullptr);
    std::vector<at::Tensor> payload{bytes};
    return group.transport.carrier(bytes).send(payload, dst, tag);
  });
  if (record_work) group.run_between_two("send", [&] { return record_work; });
}

void ProcessGroup::recv_(at::Tensor& tensor, int src, int tag) const {
  auto& group = use("recv");
  require_dense("recv", tensor);
  require_other(group, "recv", "src", src, tag);
  at::AutoGradMode no_grad(false);
  auto receive = [&](at::Tensor bytes) {
    std::vector<at::Tensor> arrived{bytes};
    if (bytes.numel() > 0)
      group.run_between_two("recv", [&] { return group.transport.carrier(bytes).recv(arrived, src, tag); });
  };
  auto bytes = bytes_of(group.transport.needs_staging(tensor) ? tensor.cpu() : tensor);
  if (group.id.config.check) {
    auto theirs = at::empty_like(shape_record("recv", tensor));
    std::vector<at::Tensor> record{theirs};
    group.run_between_two("recv", [&] { return group.transport.cpu->c10d()->recv(record, src, tag); });
    require_record("recv", theirs);
    if (!same_record(theirs, tensor)) {
      // Taken off the wire, so that the next message is the next one.
      receive(at::empty({bytes_in_record(theirs)}, bytes.options()));
      throw MismatchError("rank " + std::to_string(group.id.rank) + ": recv" + place(src, group.id.rank, tag) +
                          " expects " + describe_record(shape_record("recv", tensor)) + ", but " +
                          describe_record(theirs) +
                          " was sent. Pass a tensor of the shape and type that the other rank sends");
    }
  }
  receive(bytes);
  if (bytes.data_ptr() != tensor.data_ptr() && bytes.numel() > 0) {
    auto arrived =
        at::empty(tensor.sizes(), tensor.options().requires_grad(false).memory_format(at::MemoryFormat::Contiguous));
    bytes_of(arrived).copy_(bytes);
    tensor.copy_(arrived);
  }
}

}  // namespace fabric
