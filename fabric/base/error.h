#pragma once

#include <chrono>
#include <stdexcept>
#include <string>

#include <fabric/export.h>

namespace fabric {

/// Root of every exception this library throws. fabric/docs/errors.md lists the family and what to do after each.
class FABRIC_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A setting, flag, file or environment variable is wrong: unknown name, bad value, contradiction.
class FABRIC_API ConfigError : public Error {
 public:
  using Error::Error;
};

/// The API was called in a way it does not allow; the text says what to write instead.
class FABRIC_API MisuseError : public Error {
 public:
  using Error::Error;
};

/// Something asked for is not there: a device, a backend, a library, a program.
class FABRIC_API UnavailableError : public Error {
 public:
  using Error::Error;
};

/// Starting or watching the ranks of a job failed.
class FABRIC_API LaunchError : public Error {
 public:
  using Error::Error;
};

/// A collective operation failed; the process group must be rebuilt before it is used again.
class FABRIC_API CollectiveError : public Error {
 public:
  using Error::Error;
};

/// A wait between ranks ran out of time. Names the rank that waited, the operation and how long it waited.
class FABRIC_API TimeoutError : public CollectiveError {
 public:
  TimeoutError(int rank, std::string operation, std::chrono::milliseconds waited, const std::string& hint = "");
  int rank() const noexcept { return rank_; }
  const std::string& operation() const noexcept { return operation_; }
  std::chrono::milliseconds waited() const noexcept { return waited_; }

 private:
  int rank_;
  std::string operation_;
  std::chrono::milliseconds waited_;
};

/// The ranks disagree about an operation's shape, type or kind. Thrown on every rank; the group stays usable.
class FABRIC_API MismatchError : public CollectiveError {
 public:
  using CollectiveError::CollectiveError;
};

/// Reading or writing a checkpoint failed; files that existed before are untouched unless the text says "is in place".
class FABRIC_API CheckpointError : public Error {
 public:
  using Error::Error;
};

/// A checkpoint's bytes are truncated, hostile or not what its header says.
class FABRIC_API CheckpointCorrupt : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
};

/// A strict load found a key missing, unexpected or of another shape or type.
class FABRIC_API CheckpointKeyError : public CheckpointError {
 public:
  using CheckpointError::CheckpointError;
};

}  // namespace fabric
