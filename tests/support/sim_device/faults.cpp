#include "tests/support/sim_device/faults.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <string>
#include <vector>

#include "tests/support/sim_device/kernel.h"
#include "tests/support/sim_device/memory.h"
#include "tests/support/sim_device/names.h"
#include "tests/support/sim_device/order.h"
#include "tests/support/sim_device/pinned.h"

namespace sim {
namespace {

struct sigaction before;
std::vector<std::size_t>& opened() {
  static auto* offsets = new std::vector<std::size_t>;
  return *offsets;
}

const char* use_of(void* context) {
#if defined(__x86_64__)
  constexpr greg_t kWrite = 2;
  return static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWrite ? "writes" : "reads";
#else
  (void)context;
  return "uses";
#endif
}

std::string touched(const void* address) {
  Block* block = block_holding(address);
  if (!block) return "device memory that was never given out";
  auto at = static_cast<std::size_t>(device_arena().kernel_view(address) - block->bytes);
  auto text = describe(*block, at, at + 1);
  auto writer = block->history.last_write(at);
  if (writer.tick > 0) text += std::string(", which ") + writer.op + " wrote on " + name_of(writer.place);
  return text;
}

void handle(int signal, siginfo_t* info, void* context) {
  const void* address = info->si_addr;
  Lock lock(Order::instance().mutex());
  if (device_arena().holds_host(address)) {
    const char* op = running_operator();
    Order::instance().report((op ? std::string(op) : "the host") + " " + use_of(context) +
                             " device memory as if it were the host's: " + touched(address) +
                             "; copy the tensor to the CPU first");
    std::size_t at = device_arena().offset(address);
    device_arena().protect(at, at + 1, PROT_READ | PROT_WRITE);
    opened().push_back(at);
    return;
  }
  if (pinned_fault(address, use_of(context))) return;
  if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
  sigaction(SIGSEGV, &before, nullptr);  // and the access faults again
}

}  // namespace

void watch_faults() {
  struct sigaction now {};
  sigaction(SIGSEGV, nullptr, &now);
  if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == handle) return;
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before);
}

void close_opened_pages() {
  for (std::size_t at : opened()) device_arena().protect(at, at + 1, PROT_NONE);
  opened().clear();
}

}  // namespace sim
