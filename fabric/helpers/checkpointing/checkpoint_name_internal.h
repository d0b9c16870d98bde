#pragma once

#include <cstdint>
#include <string>

#include <fabric/export.h>
#include <fabric/plugins/loggers/logger.h>

namespace fabric {

/// Fills in a pattern such as "{epoch}-{val_loss:.2f}": `{name}` or `{name:format}` for `epoch`, `step` and any metric;
/// a metric that is not there counts as 0. With `insert_names` each becomes "name=value". The format is that of Python,
/// as far as numbers in file names need it: [+][0][width][.precision] and a type out of d, e, f, g, % (`02d`, `.3f`).
/// `epoch` and `step` among the metrics win over the arguments. Throws ConfigError for a pattern that cannot be read.
FABRIC_API std::string format_checkpoint_name(const std::string& pattern, const Metrics& metrics, std::int64_t epoch,
                                              std::int64_t step, bool insert_names = true);

/// Throws the same ConfigError without formatting anything, and for a pattern that is no relative path.
FABRIC_API void check_checkpoint_name(const std::string& pattern);

}  // namespace fabric
