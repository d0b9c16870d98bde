#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include <fabric/export.h>

namespace fabric {

/// The class of an error as a number, for other processes and other languages. Numbers never change or come again; 0 is
/// no error. fabric/docs/errors.md lists them.
enum class ErrorKind : int {
  other = 1,  // fabric::Error itself, and exceptions of other families
  config = 2,
  misuse = 3,
  unavailable = 4,
  launch = 5,
  collective = 16,
  timeout = 17,
  mismatch = 18,
  checkpoint = 32,
  checkpoint_corrupt = 33,
  checkpoint_key = 34,
  data = 48,
  training_spike = 49,
};

/// Root of every exception this library throws. fabric/docs/errors.md lists the family and what to do after each.
class FABRIC_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  /// Of the nearest class that is listed above.
  virtual ErrorKind kind() const noexcept { return ErrorKind::other; }
};

/// `other` for an exception of another family.
FABRIC_API ErrorKind kind_of(const std::exception& error) noexcept;
/// Throws the class that `kind` stands for; Error for a number that is not listed.
[[noreturn]] FABRIC_API void throw_error(ErrorKind kind, const std::string& text);

/// A setting, flag, file or environment variable is wrong: unknown name, bad value, contradiction.
class FABRIC_API ConfigError : public Error {
 public:
  using Error::Error;
  ErrorKind kind() const noexcept override { return ErrorKind::config; }
};

/// The API was called in a way it does not allow; the text says what to write instead.
class FABRIC_API MisuseError : public Error {
 public:
  using Error::Error;
  ErrorKind kind() const noexcept override { return ErrorKind::misuse; }
};

/// Something asked for is not there: a device, a backend, a library, a program.
class FABRIC_API UnavailableError : public Error {
 public:
  using Error::Error;
  ErrorKind kind() const noexcept override { return ErrorKind::unavailable; }
};

/// Starting or watching the ranks of a job failed.
class FABRIC_API LaunchError : public Error {
 public:
  using Error::Error;
  ErrorKind kind() const noexcept override { return ErrorKind::launch; }
};

/// A collective operation failed; the process group must be rebuilt before it is used again.
class FABRIC_API CollectiveError : public Error {
 public:
  using Error::Error;
  ErrorKind kind() const noexcept override { return ErrorKind::collective; }
};

/// A wait between ranks ran out of time. Names the rank that waited, the operation and how long it waited.
class FABRIC_API TimeoutError : public CollectiveError {
 public:
  TimeoutError(int rank, std::string operation, std::chrono::milliseconds waited, const std::string& hint = "");
  /// One that another rank had: the text alone is known, `rank` is -1.
  explicit TimeoutError(const std::string& text) : CollectiveError(text) {}
  ErrorKind kind() const noexcept override { return ErrorKind::timeout; }
  int rank() const noexcept { return rank_; }
  const std::string& operation() const noexcept { return operation_; }
  std::chrono::milliseconds waited() const noexcept { return waited_; }

 private:
  int rank_ = -1;
  std::string operation_;
  std::chrono::milliseconds waited_{};
};

/// The ranks disagree about an operation's shape, type or kind. Thrown on every rank; the group stays usable.
class FABRIC_API MismatchError : public CollectiveError {
 public:
  using CollectiveError::CollectiveError;
  ErrorKind kind() const noexcept override { return ErrorKind::mismatch; }
};

/// Reading or writing a checkpoint failed; files that existed before are untouched unless the text says "is in place".
class FABRIC_API CheckpointError : public Error {
 public:
  using Error::Error;
  ErrorKind kind() const noexcept override { return ErrorKind::checkpoint; }
};

/// A checkpoint's bytes are truncated, hostile or not what its header says.
class FABRIC_API CheckpointCorrupt : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
  ErrorKind kind() const noexcept override { return ErrorKind::checkpoint_corrupt; }
};

/// A strict load found a key missing, unexpected or of another shape or type.
class FABRIC_API CheckpointKeyError : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
  ErrorKind kind() const noexcept override { return ErrorKind::checkpoint_key; }
};

/// A sample or batch that could not be made, in the calling thread or a worker.
class FABRIC_API DataError : public Error {
 public:
  DataError(const std::string& text, std::size_t batch, int worker, std::optional<std::size_t> index,
            std::exception_ptr cause)
      : Error(text), batch_(batch), worker_(worker), index_(index), cause_(std::move(cause)) {}
  /// One that another rank had: the text alone is known.
  explicit DataError(const std::string& text) : Error(text) {}
  ErrorKind kind() const noexcept override { return ErrorKind::data; }
  std::size_t batch() const noexcept { return batch_; }
  /// -1: the calling thread.
  int worker() const noexcept { return worker_; }
  /// The sample that failed, where that is known.
  std::optional<std::size_t> index() const noexcept { return index_; }
  /// What the dataset threw; null when a worker did not answer in time.
  const std::exception_ptr& cause() const noexcept { return cause_; }

 private:
  std::size_t batch_ = 0;
  int worker_ = -1;
  std::optional<std::size_t> index_;
  std::exception_ptr cause_;
};

/// The loss jumped (SpikeDetection); what was read so far is in the file of batches to skip.
class FABRIC_API TrainingSpike : public Error {
 public:
  explicit TrainingSpike(const std::string& text, std::int64_t batch = -1) : Error(text), batch_(batch) {}
  ErrorKind kind() const noexcept override { return ErrorKind::training_spike; }
  std::int64_t batch() const noexcept { return batch_; }

 private:
  std::int64_t batch_;
};

}  // namespace fabric
