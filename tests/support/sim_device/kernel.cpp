#include "tests/support/sim_device/kernel.h"

#include <cstring>

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "tests/support/sim_device/faults.h"
#include "tests/support/sim_device/host_allocator.h"
#include "tests/support/sim_device/streams.h"

namespace sim {

namespace {

constexpr c10::DispatchKeySet kCpu(c10::DispatchKey::CPU), kSim(c10::DispatchKey::PrivateUse1);
constexpr c10::DispatchKeySet kPutOff({c10::DispatchKey::Conjugate, c10::DispatchKey::Negative});

at::Tensor with_shape_of(const at::Tensor& like, at::Tensor made) {
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  if (like.is_conj()) made._set_conj(true);
  if (like.is_neg()) made._set_neg(true);
  return made;
}

}  // namespace

at::Tensor tensor_over(c10::Storage storage, const at::Tensor& like, c10::DispatchKeySet keys) {
  return with_shape_of(like, at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype()));
}

// As LibTorch makes views: with the keys of what they are views of.
at::Tensor Kernel::view_of_argument(const SharedBytes& shared, const at::Tensor& result) const {
  auto keys = kSim;
  for (const auto& argument : arguments_)
    if (argument.device.storage().unsafeGetStorageImpl() == shared.device.unsafeGetStorageImpl())
      keys = argument.device.key_set() - kPutOff;
  return with_shape_of(result, at::detail::make_tensor<c10::TensorImpl>(
                                   c10::TensorImpl::VIEW, c10::Storage(shared.device), keys, result.dtype()));
}

int Kernel::default_device() { return current_device(); }

const Kernel::SharedBytes* Kernel::find(const std::vector<SharedBytes>& all, const c10::Storage& host) {
  for (const auto& shared : all)
    if (shared.host.unsafeGetStorageImpl() == host.unsafeGetStorageImpl()) return &shared;
  return nullptr;
}

c10::Storage Kernel::host_storage(const c10::Storage& device) {
  for (const auto& shared : given_)
    if (shared.device.unsafeGetStorageImpl() == device.unsafeGetStorageImpl()) return shared.host;
  auto memory = extent_of(device);
  c10::DataPtr bytes(memory.block ? memory.block->bytes + memory.begin : nullptr, c10::Device(c10::kCPU));
  c10::Storage host(c10::Storage::use_byte_size_t(), device.nbytes(), std::move(bytes), &host_allocator(),
                    /*resizable=*/true);
  given_.push_back({device, host});
  return host;
}

at::Tensor Kernel::on_host(const at::Tensor& argument, bool writes) {
  if (!argument.defined()) return argument;
  if (!is_sim(argument)) {
    has_host_tensors_ |= argument.dim() > 0;
    return argument;
  }
  int device = argument.device().index();
  TORCH_CHECK(device_ < 0 || device_ == device, "Expected all tensors to be on the same device, but found at least ",
              "two devices, sim:", device_, " and sim:", device, "! (in ", op_, ")");
  device_ = device;
  for (auto& known : arguments_) {
    if (!known.device.is_same(argument)) continue;
    known.writes |= writes;
    return known.host;
  }
  auto host = tensor_over(host_storage(argument.storage()), argument, kCpu);
  arguments_.push_back({argument, host, writes});
  return host;
}

void Kernel::wait_for_threads() {
  for (const auto& shared : given_) {
    Block* block = extent_of(shared.device).block;
    if (!block || !block->is_under_way()) continue;
    std::vector<UnderWay> works;
    {
      Lock lock(Order::instance().mutex());
      works = block->under_way;
    }
    for (const auto& work : works) work.done.get();  // throws what went wrong there
    Lock lock(Order::instance().mutex());
    std::erase_if(block->under_way, [](const UnderWay& work) {
      return work.done.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    });
    block->count_under_way();
  }
}

std::vector<std::shared_future<void>> Kernel::begin_elsewhere(Place place, const UnderWay& work) {
  Lock lock(Order::instance().mutex());
  std::vector<std::shared_future<void>> waits;
  for (const auto& shared : given_) {
    Block* block = extent_of(shared.device).block;
    if (!block) continue;
    for (const auto& earlier : block->under_way)
      if (earlier.ticket != work.ticket) waits.push_back(earlier.done);
    block->under_way.push_back(work);
    block->count_under_way();
  }
  note_accesses(place);
  return waits;
}

void Kernel::begin_without_access() { wait_for_threads(); }
void Kernel::begin() { begin(current_place(device())); }

void Kernel::begin(Place place) {
  wait_for_threads();
  Lock lock(Order::instance().mutex());
  note_accesses(place);
}

void Kernel::note_accesses(Place place) {
  auto& order = Order::instance();
  close_opened_pages();
  now_ = order.begin(place, op_);
  for (const auto& argument : arguments_) {
    auto used = extent_of(argument.device);
    if (used.block) order.access(*used.block, used.begin, used.end, argument.writes, now_);
  }
}

void Kernel::run(const std::function<void()>& work) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard without_casts(c10::autocast_dispatch_keyset);
  InKernel running(now_.tick > 0 ? now_.place : current_place(device()), op_);
  work();
}

at::Tensor Kernel::on_device(const at::Tensor& result) {
  if (!result.defined() || !result.device().is_cpu() || !result.has_storage()) return result;
  for (const auto& argument : arguments_)
    if (argument.host.is_same(result)) return argument.device;
  if (const auto* shared = find(given_, result.storage())) return view_of_argument(*shared, result);
  if (const auto* shared = find(made_, result.storage())) return tensor_over(shared->device, result, kSim);
  auto& storage = *result.storage().unsafeGetStorageImpl();
  std::size_t bytes = storage.nbytes();
  Block* block = take_block(storage);
  if (!block) {  // made by a thread of the kernel's, or of no bytes
    block = allocate(bytes, current_place(device()));
    if (block) std::memcpy(block->bytes, storage.data(), bytes);
  }
  if (block) fresh_.push_back(block);
  made_.push_back({c10::Storage(c10::Storage::use_byte_size_t(), bytes, data_pointer(block, device()),
                                &device_allocator(), /*resizable=*/true),
                   result.storage()});
  return tensor_over(made_.back().device, result, kSim);
}

void Kernel::adopt_resized() {
  for (auto& shared : given_) {
    Block* block = take_block(*shared.host.unsafeGetStorageImpl());
    if (!block) continue;
    shared.device.unsafeGetStorageImpl()->set_data_ptr_noswap(data_pointer(block, device()));
    shared.device.unsafeGetStorageImpl()->set_nbytes(shared.host.nbytes());
    fresh_.push_back(block);
  }
  for (auto& argument : arguments_)
    if (argument.writes &&
        (argument.host.sizes() != argument.device.sizes() || argument.host.strides() != argument.device.strides()))
      argument.device.unsafeGetTensorImpl()->set_sizes_and_strides(argument.host.sizes(), argument.host.strides(),
                                                                   argument.host.storage_offset());
}

void Kernel::end() {
  adopt_resized();
  if (now_.tick == 0) return;
  Lock lock(Order::instance().mutex());
  for (Block* block : fresh_) Order::instance().access(*block, 0, block->size, /*writes=*/true, now_);
}

void launch(const c10::Stream& stream, const char* name, const std::vector<at::Tensor>& reads,
            const std::vector<at::Tensor>& writes,
            const std::function<void(const std::vector<at::Tensor>&, const std::vector<at::Tensor>&)>& work) {
  Kernel kernel(name);
  std::vector<at::Tensor> read, written;
  for (const auto& tensor : reads) read.push_back(kernel.on_host(tensor, false));
  for (const auto& tensor : writes) written.push_back(kernel.on_host(tensor, true));
  kernel.begin(place_of(stream));
  kernel.run([&] { work(read, written); });
  kernel.end();
}

}  // namespace sim
