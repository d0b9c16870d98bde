#pragma once
// Handled by pointer only.
namespace gloo::transport {
class Device;
class UnboundBuffer;
}  // namespace gloo::transport
