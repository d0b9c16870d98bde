#include "plugins/precision/autocast.h"

#include <ATen/autocast_mode.h>

namespace fabric {
namespace {

namespace autocast = at::autocast;

// Small and trivially copyable, so that a Scope holds it without allocating.
struct Before {
  c10::DeviceType device_type;
  c10::ScalarType dtype;
  bool enabled;
  bool cache_enabled;

  void restore() const {
    if (autocast::decrement_nesting() == 0) autocast::clear_cache();
    autocast::set_autocast_enabled(device_type, enabled);
    autocast::set_autocast_dtype(device_type, dtype);
    autocast::set_autocast_cache_enabled(cache_enabled);
  }
};

}  // namespace

Scope autocast_scope(c10::DeviceType device_type, c10::ScalarType dtype) {
  Before before{device_type, autocast::get_autocast_dtype(device_type), autocast::is_autocast_enabled(device_type),
                autocast::is_autocast_cache_enabled()};
  autocast::set_autocast_enabled(device_type, true);
  autocast::set_autocast_dtype(device_type, dtype);
  autocast::set_autocast_cache_enabled(true);
  autocast::increment_nesting();
  return Scope([before] { before.restore(); });
}

}  // namespace fabric
