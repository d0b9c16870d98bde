#pragma once
/// Marks a symbol that the shared library offers to its users; everything else stays hidden.
#define FABRIC_API __attribute__((visibility("default")))
