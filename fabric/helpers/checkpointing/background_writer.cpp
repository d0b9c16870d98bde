#include <fabric/helpers/checkpointing/background_writer.h>

#include <chrono>
#include <exception>
#include <string>
#include <utility>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

namespace fabric {

BackgroundWriter::~BackgroundWriter() {
  try {
    wait();
  } catch (const std::exception& error) {
    log::error(std::string("a checkpoint that was being written is lost: ") + error.what());
  } catch (...) {
    log::error("a checkpoint that was being written is lost");
  }
}

void BackgroundWriter::start(std::function<void()> work) {
  if (in_flight()) throw MisuseError("a file is being written already; wait for it before the next one");
  work_ = std::async(std::launch::async, std::move(work));
}

bool BackgroundWriter::ended() const {
  return in_flight() && work_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

void BackgroundWriter::wait() {
  if (!in_flight()) return;
  auto work = std::exchange(work_, {});
  work.get();
}

}  // namespace fabric
