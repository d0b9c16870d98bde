// Keeps Gloo's own thread from ending the process.
//
// Gloo reads its connections in a thread that catches nothing: a message that does not fit the operation it meets is a
// gloo::EnforceNotMet there, hence std::terminate. The thread calls each connection through a table of virtual
// functions. The dynamic linker fills that table by the functions' names, and takes the first definition that it finds:
// the one below, which calls Gloo's and closes the connection where that throws. Names and the place of the base class
// are those of the Itanium ABI. Where LibTorch has other names, nothing refers to this function, and all is as without
// it. A name tells a function's arguments but not what it returns: only such are called whose results never changed
// (Pair::signalExceptionExternal returns nothing in older Gloo, an exception_ptr by a hidden pointer in newer).
#include "plugins/collectives/gloo/gloo_faults.h"

#include <dlfcn.h>

#include <atomic>
#include <exception>
#include <mutex>

#include <fabric/export.h>

#define FABRIC_HANDLE_EVENTS _ZThn16_N4gloo9transport3tcp4Pair12handleEventsERNS1_4LoopEi
#define FABRIC_TEXT_OF_(name) #name
#define FABRIC_TEXT_OF(name) FABRIC_TEXT_OF_(name)

namespace fabric::collectives {
namespace {

using HandleEvents = void (*)(void* handler, void* loop, int events);
using ClosePair = void (*)(void* pair);

// Where the part of a Pair that handles events lies in it; the name above says so as well.
constexpr std::ptrdiff_t kPlaceInPair = 16;
constexpr const char* kClosePair = "_ZN4gloo9transport3tcp4Pair5closeEv";

std::atomic<std::uint64_t> faults{0};

std::mutex& text_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}
std::string& text_of_last() {
  static auto* text = new std::string;
  return *text;
}

// Resets the connection, so that the peer is told at once. Waits of this process are not: the operation that the
// message met is known to no list of Gloo's any more. They look at gloo_faults().
void close_pair(void* handler) noexcept {
  static const auto close = reinterpret_cast<ClosePair>(dlsym(RTLD_DEFAULT, kClosePair));
  if (!close) return;
  try {
    close(static_cast<char*>(handler) - kPlaceInPair);
  } catch (const std::exception&) {
    // The lock cannot be had: the process is beyond help.
  }
}

void note(const std::string& why) {
  {
    std::lock_guard lock(text_mutex());
    text_of_last() = why;
  }
  faults.fetch_add(1, std::memory_order_release);
}

}  // namespace

std::uint64_t gloo_faults() noexcept { return faults.load(std::memory_order_acquire); }

std::string last_gloo_fault() {
  std::lock_guard lock(text_mutex());
  return text_of_last();
}

}  // namespace fabric::collectives

extern "C" FABRIC_API void FABRIC_HANDLE_EVENTS(void* handler, void* loop, int events) {
  using namespace fabric::collectives;
  static const auto original = reinterpret_cast<HandleEvents>(dlsym(RTLD_NEXT, FABRIC_TEXT_OF(FABRIC_HANDLE_EVENTS)));
  if (!original) std::terminate();
  try {
    original(handler, loop, events);
  } catch (const std::exception& error) {
    note(error.what());
    close_pair(handler);
  }
}

namespace fabric::collectives {

bool catches_gloo_faults() {
  return dlsym(RTLD_DEFAULT, FABRIC_TEXT_OF(FABRIC_HANDLE_EVENTS)) == reinterpret_cast<void*>(&FABRIC_HANDLE_EVENTS);
}

}  // namespace fabric::collectives
