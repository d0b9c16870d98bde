// Two ranks through Fabric::launch, up to the first barrier; says "ready" and ends. Started by bench_launch.
// The start method comes from START_METHOD: auto or popen.
#include <cstdio>
#include <cstdlib>

#include <fabric/fabric.h>

int main() {
  fabric::Choice strategy("ddp");
  strategy.params["start_method"] = std::getenv("START_METHOD");
  fabric::Fabric fabric({.accelerator = "cpu", .strategy = strategy, .devices = 2});
  fabric.launch();
  fabric.barrier();
  if (fabric.is_global_zero()) {
    std::puts("ready");
    std::fflush(stdout);
  }
}
