#include <fabric/dispatch/measure_flops.h>

#include <ATen/ThreadLocalState.h>
#include <torch/torch.h>

#include <thread>

#include "tests/support/catch.h"

using fabric::measure_flops;

// The numbers are those of PyTorch's FlopCounterMode for the same modules and shapes.
TEST_CASE("operations are counted as PyTorch counts them, backward passes too", "[flops]") {
  auto with_backward = [](auto&& forward) {
    return measure_flops(forward, [](const torch::Tensor& out) { return out.sum(); });
  };
  torch::nn::Sequential mlp(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
  auto x = torch::randn({32, 32});
  CHECK(measure_flops([&] { mlp->forward(x); }) == 172032);
  CHECK(with_backward([&] { return mlp->forward(x); }) == 385024);

  auto image = torch::randn({2, 3, 17, 19});
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(3, 8, {3, 5}).stride(2).padding(1));
  CHECK(measure_flops([&] { conv(image); }) == 116640);
  CHECK(with_backward([&] { return conv(image); }) == 233280);
  torch::nn::ConvTranspose2d transposed(torch::nn::ConvTranspose2dOptions(3, 8, 3).stride(2));
  CHECK(measure_flops([&] { transposed(image); }) == 279072);
  CHECK(with_backward([&] { return transposed(image); }) == 558144);

  auto wanting = [](at::IntArrayRef sizes) { return torch::randn(sizes, torch::requires_grad()); };
  auto q = wanting({2, 4, 10, 16}), k = wanting({2, 4, 12, 16}), v = wanting({2, 4, 12, 16});
  CHECK(measure_flops([&] { torch::scaled_dot_product_attention(q, k, v); }) == 61440);
  CHECK(with_backward([&] { return torch::scaled_dot_product_attention(q, k, v); }) == 215040);
  auto a = wanting({3, 4, 5}), b = wanting({3, 5, 6});
  CHECK(with_backward([&] { return a.matmul(b); }) == 2160);
  CHECK(measure_flops([&] { torch::baddbmm(torch::randn({3, 4, 6}), a, b); }) == 720);
}

TEST_CASE("operations count without autograd, too", "[flops]") {
  torch::nn::Sequential mlp(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
  auto x = torch::randn({32, 32});
  {
    torch::NoGradGuard no_grad;
    CHECK(measure_flops([&] { mlp->forward(x); }) == 172032);
  }
  c10::InferenceMode inference;
  torch::nn::Sequential frozen(torch::nn::Linear(32, 64), torch::nn::ReLU(), torch::nn::Linear(64, 10));
  CHECK(measure_flops([&] { frozen->forward(torch::randn({32, 32})); }) == 172032);
}

TEST_CASE("groups of a convolution share its filters out", "[flops]") {
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(4, 8, 3).groups(2));
  auto image = torch::randn({2, 4, 9, 9}, torch::requires_grad());
  CHECK(measure_flops([&] { conv(image); }) == 28224);
  CHECK(measure_flops([&] { conv(image).sum().backward(); }) == 3 * 28224);
}

TEST_CASE("counting ends with the function, by an exception as well, and may be nested", "[flops]") {
  auto a = torch::randn({2, 3}), b = torch::randn({3, 4});
  std::int64_t inner = 0;
  auto outer = measure_flops([&] {
    a.mm(b);
    inner = measure_flops([&] { a.mm(b); });
    a.mm(b);
  });
  CHECK(inner == 48);
  CHECK(outer == 2 * 48);
  CHECK_THROWS_AS(measure_flops([] { throw std::runtime_error("no"); }), std::runtime_error);
  a.mm(b);
  CHECK(measure_flops([&] { a + a; }) == 0);
}

// Autograd's threads, one for each GPU, take over the state of the thread that called backward().
TEST_CASE("what runs on another thread with this one's state counts, a backward pass as well", "[flops]") {
  auto a = torch::randn({2, 3}, torch::requires_grad()), b = torch::randn({3, 4}, torch::requires_grad());
  auto elsewhere = [](const std::function<void()>& run) {
    std::thread([&, state = at::ThreadLocalState()] {
      at::ThreadLocalStateGuard guard(state);
      run();
    }).join();
  };
  CHECK(measure_flops([&] {
          torch::Tensor sum;
          elsewhere([&] { sum = a.mm(b).sum(); });
          elsewhere([&] { sum.backward(); });
        }) == 3 * 48);

  std::int64_t inner = 0;
  auto outer = measure_flops([&] {
    a.mm(b);
    elsewhere([&] { inner = measure_flops([&] { elsewhere([&] { a.mm(b).sum().backward(); }); }); });
    elsewhere([&] { a.mm(b); });
  });
  CHECK(inner == 3 * 48);
  CHECK(outer == 2 * 48);

  CHECK(measure_flops([&] { std::thread([&] { a.mm(b); }).join(); }) == 0);
}
