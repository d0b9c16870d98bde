#pragma once

#include <string>
#include <string_view>

#include <fabric/export.h>

/// Marks a declaration as deprecated since a version: FABRIC_DEPRECATED("0.3", "use run() instead") void start(); The
/// compiler warns where it is used. What is deprecated works unchanged until the second minor version after that one,
/// or the next major one. Each goes with a FABRIC_WARN_DEPRECATED of the same version in the definition.
#define FABRIC_DEPRECATED(since, advice) \
  [[deprecated("since TorchFabric " since ", to be removed two minor versions later: " advice)]]

/// The first thing that a deprecated function does: says once at run time what to use instead, and until when it works.
/// FABRIC_WARN_DEPRECATED("Runner::start()", "0.3", "use run() instead");
#define FABRIC_WARN_DEPRECATED(what, since, advice)                                                                  \
  do {                                                                                                               \
    [[maybe_unused]] static const bool fabric_said = (::fabric::detail::warn_deprecated(what, since, advice), true); \
  } while (false)

/// The first thing that what is marked `@experimental` does when it is made or called: says so, once at run time.
#define FABRIC_WARN_EXPERIMENTAL(what)                                                                  \
  do {                                                                                                  \
    [[maybe_unused]] static const bool fabric_said = (::fabric::detail::warn_experimental(what), true); \
  } while (false)

namespace fabric::detail {

/// In which version what is deprecated since `since` ("0.3") is gone: "0.5". Throws MisuseError for what is no version.
FABRIC_API std::string removal_version(std::string_view since);
/// Each on rank 0, at most once per text and process.
FABRIC_API void warn_deprecated(std::string_view what, std::string_view since, std::string_view advice);
FABRIC_API void warn_experimental(std::string_view what);

}  // namespace fabric::detail
