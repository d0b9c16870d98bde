// A group of one. Its operations return their input before they come to a backend; LibTorch's object, which a user may
// ask for, goes over a Gloo of one that is made then.
#include "fabric/base/plugin_library_internal.h"
#include "plugins/collectives/backend_kinds.h"
#include "plugins/collectives/gloo/gloo_backend.h"
#include "plugins/collectives/store/job_store.h"

namespace fabric::collectives {
namespace {

class SingleBackend : public CollectiveBackend {
 public:
  explicit SingleBackend(BackendRequest request) : CollectiveBackend(nullptr), request_(std::move(request)) {}
  const c10::intrusive_ptr<c10d::Backend>& c10d() const override {
    if (!gloo_) {
      auto request = request_;
      request.store = open_private_store();
      gloo_ = make_gloo(request);
    }
    return gloo_->c10d();
  }
  std::string describe() const override { return "one rank"; }
  bool agree(std::int64_t, const char*) override { return true; }
  std::shared_ptr<CollectiveBackend> subgroup(const BackendRequest& request, const std::vector<int>&, int) override {
    return std::make_shared<SingleBackend>(request);
  }
  void break_connections() override {}
  void close() override {
    if (gloo_) gloo_->close();
  }

 private:
  BackendRequest request_;
  mutable std::shared_ptr<CollectiveBackend> gloo_;
};

}  // namespace

BackendKind single_kind() {
  return {.make = [](const BackendRequest& request) { return std::make_shared<SingleBackend>(request); },
          .needs_store = false,
          .suits = [](const RankInfo& ranks,
                      c10::Device device) { return ranks.world_size == 1 && device.is_cpu() ? 40 : 0; },
          .require =
              [](const BackendRequest& request) {
                if (request.size != 1)
                  throw ConfigError("the process group backend 'single' is for one rank; this job has " +
                                    std::to_string(request.size) + ". Use 'auto'");
              }};
}

}  // namespace fabric::collectives
