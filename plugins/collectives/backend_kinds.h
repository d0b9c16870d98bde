#pragma once

#include <fabric/plugins/collectives/backend.h>

namespace fabric::collectives {

// The built-in kinds; each stands in the folder of its backend.
BackendKind gloo_kind();
BackendKind mpi_kind();
BackendKind nccl_kind();
BackendKind shm_kind();
BackendKind single_kind();

struct NamedKind {
  std::string name;
  BackendKind kind;
};

/// Throws ConfigError naming the nearest for an unknown name.
NamedKind find_kind(const std::string& name);
/// The kind that suits these ranks best, of those that `eligible` lets through; an empty name: none does.
NamedKind best_kind(const RankInfo& ranks, c10::Device device, const std::function<bool(const BackendKind&)>& eligible);

}  // namespace fabric::collectives
