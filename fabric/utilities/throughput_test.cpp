#include <fabric/utilities/throughput.h>

#include <fabric/base/error.h>

#include "tests/support/catch.h"

using fabric::Metrics;
using fabric::MisuseError;
using fabric::Throughput;

TEST_CASE("Totals come at once, rates when the window is full", "[throughput]") {
  Throughput throughput({.available_flops = 50, .window_size = 3});
  CHECK_THROWS_AS(throughput.compute(), MisuseError);
  throughput.update({.time = 2, .batches = 1, .samples = 4, .lengths = 40, .flops = 1000});
  CHECK(throughput.compute() == Metrics{{"time", 2}, {"batches", 1}, {"samples", 4}, {"lengths", 40}});
  throughput.update({.time = 3, .batches = 2, .samples = 8, .lengths = 80, .flops = 10});
  CHECK(throughput.compute().size() == 4);
  throughput.update({.time = 6, .batches = 5, .samples = 16, .lengths = 200, .flops = 30});
  CHECK(throughput.compute() == Metrics{{"time", 6},
                                        {"batches", 5},
                                        {"samples", 16},
                                        {"lengths", 200},
                                        {"device/batches_per_sec", 1},
                                        {"device/samples_per_sec", 3},
                                        {"device/items_per_sec", 40},
                                        {"device/flops_per_sec", 10},
                                        {"device/mfu", 0.2}});
}

TEST_CASE("The window slides", "[throughput]") {
  Throughput throughput({.window_size = 3});
  double times[] = {1, 2, 3, 5, 9, 17, 33};
  for (int i = 0; i < 7; ++i) throughput.update({.time = times[i], .batches = i + 1, .samples = 10 * (i + 1)});
  auto metrics = throughput.compute();
  CHECK(metrics["device/samples_per_sec"] == Approx(20.0 / 24));
  CHECK_FALSE(metrics.contains("device/mfu"));
  CHECK_FALSE(metrics.contains("samples_per_sec"));
  throughput.reset();
  throughput.update({.time = 1, .batches = 1, .samples = 1});
  CHECK(throughput.compute().size() == 3);
}

TEST_CASE("Several ranks add the sums over all", "[throughput]") {
  Throughput throughput({.available_flops = 100, .world_size = 4, .window_size = 2, .separator = "."});
  throughput.update({.time = 1, .batches = 1, .samples = 2, .flops = 7});
  throughput.update({.time = 3, .batches = 3, .samples = 8, .flops = 20});
  auto metrics = throughput.compute();
  CHECK(metrics["device.samples_per_sec"] == 3);
  CHECK(metrics["samples_per_sec"] == 12);
  CHECK(metrics["batches_per_sec"] == 4);
  CHECK(metrics["device.flops_per_sec"] == 10);
  CHECK(metrics["flops_per_sec"] == 40);
  CHECK(metrics["device.mfu"] == Approx(0.1));
}

TEST_CASE("Updates that cannot be are refused and not taken in", "[throughput]") {
  Throughput throughput({.window_size = 2});
  throughput.update({.time = 1, .batches = 1, .samples = 2});
  CHECK_THROWS_AS(throughput.update({.time = 1, .batches = 2, .samples = 4}), MisuseError);
  CHECK_THROWS_AS(throughput.update({.time = 2, .batches = 1, .samples = 4}), MisuseError);
  CHECK_THROWS_AS(throughput.update({.time = 2, .batches = 2, .samples = 2}), MisuseError);
  CHECK_THROWS_AS(throughput.update({.time = 2, .batches = 5, .samples = 4}), MisuseError);
  CHECK_THROWS_AS(throughput.update({.time = 2, .batches = 2, .samples = 4, .lengths = 8}), MisuseError);
  CHECK_THROWS_AS(throughput.update({.time = 2, .batches = 2, .samples = 4, .flops = 1}), MisuseError);
  CHECK(throughput.compute().at("samples") == 2);
  Throughput items;
  CHECK_THROWS_AS(items.update({.time = 1, .batches = 1, .samples = 4, .lengths = 3}), MisuseError);
  CHECK_THROWS_AS(Throughput({.window_size = 1}), MisuseError);
  CHECK_THROWS_AS(Throughput({.world_size = 0}), MisuseError);
  CHECK_THROWS_WITH(Throughput({.available_flops = -1.5}), Catch::Contains("given -1.5"));
  CHECK_THROWS_WITH(throughput.update({.time = 0.25, .batches = 2, .samples = 4}), Catch::Contains("0.25 after 1"));
}

TEST_CASE("GPUs are known by name", "[throughput]") {
  using fabric::peak_flops;
  CHECK(peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16") == 312e12);
  CHECK(peak_flops("NVIDIA A10", "float16") == 125e12);
  CHECK(peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12);
  CHECK(peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4e12);
  CHECK(peak_flops("NVIDIA H200", "tf32") == 494.7e12);
  CHECK(peak_flops("NVIDIA GeForce RTX 3090 Ti", "float16") == 80e12);
  CHECK(peak_flops("Tesla V100-SXM2-16GB", "float16") == 125e12);
  CHECK(peak_flops("NVIDIA GeForce RTX 3080 Ti", "float32") == 34.1e12);
  CHECK(peak_flops("NVIDIA GeForce RTX 3080", "float32") == 29.8e12);
  CHECK(peak_flops("NVIDIA GeForce RTX 3070", "float32") == 20.3e12);
  CHECK(peak_flops("NVIDIA GeForce RTX 2080 Ti", "float16") == 56.9e12);
  CHECK(peak_flops("NVIDIA GeForce RTX 2070 SUPER", "float32") == 9.1e12);
  CHECK(peak_flops("Quadro RTX 5000", "float16") == 89.2e12);
  CHECK(peak_flops("NVIDIA TITAN RTX", "float16") == 130.5e12);
  CHECK(peak_flops("Tesla V100S-PCIE-32GB", "float16") == 130e12);
  CHECK(peak_flops("Tesla V100-PCIE-32GB", "float64") == 7e12);
  CHECK(peak_flops("NVIDIA H100 80GB HBM3", "float64") == 67e12);
  CHECK_FALSE(peak_flops("NVIDIA GeForce RTX 3080 Laptop GPU", "float32").has_value());
  CHECK_FALSE(peak_flops("NVIDIA GeForce RTX 2080 with Max-Q Design", "float32").has_value());
  CHECK_FALSE(peak_flops("NVIDIA RTX 5000 Ada Generation", "float32").has_value());
  CHECK_FALSE(peak_flops("Tesla T4", "bfloat16").has_value());
  CHECK_FALSE(peak_flops("Tesla V100S-PCIE-32GB", "tf32").has_value());
  CHECK_FALSE(peak_flops("NVIDIA A100-SXM4-80GB", "complex64").has_value());
  CHECK_FALSE(peak_flops("cpu", "float32").has_value());
}
