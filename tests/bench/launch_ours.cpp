// Two ranks through Fabric::launch, up to the first barrier; says "ready" and ends. Started by bench_launch.
#include <cstdio>

#include <fabric/fabric.h>

int main() {
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = "ddp", .devices = 2});
  fabric.launch();
  fabric.barrier();
  if (fabric.is_global_zero()) {
    std::puts("ready");
    std::fflush(stdout);
  }
}
