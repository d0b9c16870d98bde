#pragma once
// What LibTorch's header of torch::nn::parallel needs of CUDA: a type that it names, for streams that dp never gives.
// LibTorch's own header of this name needs the CUDA toolkit, which a machine without a GPU rarely has.
#include <c10/core/Stream.h>

namespace c10::cuda {
class CUDAStream {
  Stream stream_;
};
}  // namespace c10::cuda

namespace at::cuda {
using c10::cuda::CUDAStream;
}  // namespace at::cuda
