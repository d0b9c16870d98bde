#include "plugins/collectives/shapes.h"

#include <sstream>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include "plugins/collectives/check.h"

namespace fabric::collectives {
namespace {

constexpr std::int64_t kMostDimensions = 12;
constexpr std::int64_t kRecord = kMostDimensions + 2;  // type, number of dimensions, sizes

void write_record(std::int64_t* record, const at::Tensor& tensor, const char* operation) {
  if (tensor.dim() > kMostDimensions)
    throw MisuseError(std::string(operation) + " takes tensors of at most " + std::to_string(kMostDimensions) +
                      " dimensions here; this one has " + std::to_string(tensor.dim()) + ". Flatten it first");
  record[0] = static_cast<std::int64_t>(tensor.scalar_type());
  record[1] = tensor.dim();
  for (std::int64_t i = 0; i < tensor.dim(); ++i) record[2 + i] = tensor.size(i);
}

std::string text_of(const std::int64_t* record) {
  return c10::toString(static_cast<at::ScalarType>(record[0])) + std::string(" ") +
         c10::str(at::IntArrayRef(record + 2, record[1]));
}

// All ranks see the same records, so all of them throw.
void require_alike(const Group& group, const char* operation, const std::int64_t* records, std::int64_t count) {
  bool alike = true;
  for (std::int64_t i = 1; i < count * group.id.size; ++i)
    alike = alike && records[i * kRecord] == records[0] && records[i * kRecord + 1] == records[1];
  if (alike) return;
  std::ostringstream text;
  text << "rank " << group.id.rank << ": " << operation
       << " needs tensors of one type and one number of dimensions on every rank; only the sizes may differ.";
  for (int rank = 0; rank < group.id.size; ++rank)
    text << "\n  rank " << rank << ": " << text_of(records + rank * count * kRecord);
  throw MismatchError(text.str());
}

}  // namespace

std::vector<std::vector<Shape>> exchange_shapes(Group& group, const char* operation, at::ArrayRef<at::Tensor> tensors) {
  auto count = static_cast<std::int64_t>(tensors.size());
  auto mine = at::full({count * kRecord}, -1, at::kLong);
  auto all = at::empty({group.id.size * count * kRecord}, at::kLong);
  for (std::int64_t i = 0; i < count; ++i) {
    write_record(mine.mutable_data_ptr<std::int64_t>() + i * kRecord, tensors[i], operation);
  }
  group.run(operation, [&] { return group.transport.cpu->c10d()->_allgather_base(all, mine); });
  const auto* records = all.const_data_ptr<std::int64_t>();
  require_alike(group, operation, records, count);
  std::vector<std::vector<Shape>> shapes(group.id.size);
  auto item = static_cast<std::int64_t>(tensors[0].element_size());
  for (int rank = 0; rank < group.id.size; ++rank) {
    for (std::int64_t i = 0; i < count; ++i) {
      const auto* record = records + (rank * count + i) * kRecord;
      Shape shape{{record + 2, record + 2 + record[1]}, item};
      for (auto size : shape.sizes) shape.bytes *= size;
      shapes[rank].push_back(std::move(shape));
    }
  }
  return shapes;
}

void require_one_per_rank(const Group& group, const char* operation, const std::vector<at::Tensor>& tensors,
                          const at::Tensor* like, bool any_shape) {
  if (static_cast<int>(tensors.size()) != group.id.size)
    throw MisuseError(std::string(operation) + " got " + std::to_string(tensors.size()) + " tensors; the group of " +
                      std::to_string(group.id.size) + " ranks needs one for each");
  const auto& model = like ? *like : tensors.front();
  for (const auto& tensor : tensors) {
    require_dense(operation, tensor);
    bool fits = tensor.scalar_type() == model.scalar_type() && tensor.device().type() == model.device().type();
    if (fits && any_shape) fits = tensor.dim() == model.dim();
    if (fits && like) fits = tensor.sizes() == model.sizes();
    if (!fits)
      throw MisuseError(std::string(operation) + " needs tensors that are alike; got " +
                        c10::toString(tensor.scalar_type()) + " " + c10::str(tensor.sizes()) + " beside " +
                        c10::toString(model.scalar_type()) + " " + c10::str(model.sizes()));
  }
}

at::Tensor shape_record(const char* operation, const at::Tensor& tensor) {
  auto record = at::full({kRecord}, -1, at::kLong);
  write_record(record.mutable_data_ptr<std::int64_t>(), tensor, operation);
  return record;
}

void require_record(const char* operation, const at::Tensor& record) {
  const auto* theirs = record.const_data_ptr<std::int64_t>();
  bool fits = theirs[0] >= 0 && theirs[0] < static_cast<std::int64_t>(at::ScalarType::Undefined) && theirs[1] >= 0 &&
              theirs[1] <= kMostDimensions;
  for (std::int64_t i = 0; fits && i < theirs[1]; ++i) fits = theirs[2 + i] >= 0;
  if (!fits)
    throw CollectiveError(std::string(operation) +
                          " got something else than the shape that goes ahead of a tensor. Have all ranks the same "
                          "`check`?");
}

bool same_record(const at::Tensor& record, const at::Tensor& tensor) {
  const auto* theirs = record.const_data_ptr<std::int64_t>();
  return theirs[0] == static_cast<std::int64_t>(tensor.scalar_type()) && theirs[1] == tensor.dim() &&
         at::IntArrayRef(theirs + 2, theirs[1]) == tensor.sizes();
}

std::int64_t bytes_in_record(const at::Tensor& record) {
  const auto* theirs = record.const_data_ptr<std::int64_t>();
  auto bytes = static_cast<std::int64_t>(c10::elementSize(static_cast<at::ScalarType>(theirs[0])));
  for (std::int64_t i = 0; i < theirs[1]; ++i) bytes *= theirs[2 + i];
  return bytes;
}

std::string describe_record(const at::Tensor& record) { return text_of(record.const_data_ptr<std::int64_t>()); }

}  // namespace fabric::collectives
