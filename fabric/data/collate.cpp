#include <fabric/data/collate.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

namespace fabric::detail {
namespace {

template <class T>
at::Tensor copy_of(const std::vector<T>& numbers, at::ScalarType type) {
  auto tensor =
      at::empty({static_cast<std::int64_t>(numbers.size())}, at::TensorOptions().dtype(type).device(at::kCPU));
  std::memcpy(tensor.mutable_data_ptr(), numbers.data(), numbers.size() * sizeof(T));
  return tensor;
}

template <class T, class Get>
at::Tensor numbers_of(const std::vector<Value>& samples, Get get) {
  std::vector<T> numbers;
  numbers.reserve(samples.size());
  for (const auto& sample : samples) numbers.push_back(get(sample));
  return tensor_of(numbers);
}

Value collate_lists(const std::vector<Value>& samples) {
  std::size_t length = samples[0].as_list().size();
  Value::List columns;
  for (std::size_t k = 0; k < length; ++k) {
    std::vector<Value> column;
    for (const auto& sample : samples) {
      if (sample.as_list().size() != length) throw_uneven_samples("are lists of unequal length");
      column.push_back(sample.as_list()[k]);
    }
    columns.push_back(collate_values(column));
  }
  return columns;
}

Value collate_maps(const std::vector<Value>& samples) {
  Value::Map batch;
  for (const auto& [key, first] : samples[0].as_map()) {
    std::vector<Value> column;
    for (const auto& sample : samples) {
      const Value* found = sample.as_map().find(key);
      if (!found || sample.as_map().size() != samples[0].as_map().size())
        throw_uneven_samples("are maps with different keys");
      column.push_back(*found);
    }
    batch[key] = collate_values(column);
  }
  return batch;
}

}  // namespace

void throw_uneven_samples(const std::string& what) {
  throw Error("the samples of a batch " + what +
              ", so they cannot be stacked. Give the dataset a member `collate(std::vector<Sample>)` that builds the "
              "batch, or make the samples alike in `get`");
}

at::Tensor stack_samples(const std::vector<at::Tensor>& samples) {
  const at::Tensor& first = samples.at(0);
  for (const auto& sample : samples) {
    if (!sample.defined()) throw_uneven_samples("hold an undefined tensor");
    if (sample.sizes() != first.sizes()) {
      std::ostringstream text;
      text << "have the shapes " << first.sizes() << " and " << sample.sizes();
      throw_uneven_samples(text.str());
    }
  }
  return at::stack(samples);
}

at::Tensor tensor_of(const std::vector<std::int64_t>& numbers) { return copy_of(numbers, at::kLong); }
at::Tensor tensor_of(const std::vector<double>& numbers) { return copy_of(numbers, at::kDouble); }
at::Tensor tensor_of(const std::vector<float>& numbers) { return copy_of(numbers, at::kFloat); }

at::Tensor tensor_of(const std::vector<bool>& numbers) {
  auto tensor = at::empty({static_cast<std::int64_t>(numbers.size())}, at::TensorOptions().dtype(at::kBool));
  std::copy(numbers.begin(), numbers.end(), tensor.mutable_data_ptr<bool>());
  return tensor;
}

Value collate_values(const std::vector<Value>& samples) {
  const Value& first = samples.at(0);
  auto all = [&](auto is) { return std::all_of(samples.begin(), samples.end(), is); };
  if (all([](const Value& v) { return v.is<at::Tensor>(); })) {
    std::vector<at::Tensor> tensors;
    for (const auto& sample : samples) tensors.push_back(sample.as<at::Tensor>());
    return stack_samples(tensors);
  }
  if (all([](const Value& v) { return v.is_bool(); }))
    return numbers_of<bool>(samples, [](const Value& v) { return v.as_bool(); });
  if (all([](const Value& v) { return v.is_int(); }))
    return numbers_of<std::int64_t>(samples, [](const Value& v) { return v.as_int(); });
  if (all([](const Value& v) { return v.is_number(); }))
    return numbers_of<double>(samples, [](const Value& v) { return v.as_double(); });
  if (all([](const Value& v) { return v.is_list(); })) return collate_lists(samples);
  if (all([](const Value& v) { return v.is_map(); })) return collate_maps(samples);
  if (!all([&](const Value& v) { return v.variant().index() == first.variant().index(); }))
    throw_uneven_samples("hold values of different kinds under one name");
  return Value::List(samples.begin(), samples.end());
}

}  // namespace fabric::detail
