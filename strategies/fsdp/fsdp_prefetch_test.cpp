// Units that are gathered ahead of their use: the same numbers bit by bit, whatever the passes do.
#include <fabric/plugins/collectives/backend.h>

#include "strategies/fsdp/fsdp_test_support.h"

using namespace fsdp_test;
using fabric::Tree;

namespace {

int gathers = 0;

// Gloo that counts the gathers that were begun.
class Counting : public c10d::Backend {
 public:
  explicit Counting(c10::intrusive_ptr<c10d::Backend> gloo)
      : Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)) {}
  using Work = c10::intrusive_ptr<c10d::Work>;
  using Tensors = std::vector<at::Tensor>;
  Work _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override {
    gathers += input.is_floating_point();
    return gloo_->_allgather_base(output, input, options);
  }
  Work _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& options) override {
    return gloo_->_reduce_scatter_base(output, input, options);
  }
  Work allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    return gloo_->allreduce(tensors, options);
  }
  Work broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    return gloo_->broadcast(tensors, options);
  }
  Work barrier(const c10d::BarrierOptions& options) override { return gloo_->barrier(options); }
  const std::string getBackendName() const override { return "counting"; }

 private:
  c10::intrusive_ptr<c10d::Backend> gloo_;
};

void register_counting() {
  fabric::register_backend(
      "counting", {.make = [](const fabric::BackendRequest& request) {
        auto gloo = fabric::make_backend("gloo", request);
        return std::make_shared<fabric::CollectiveBackend>(c10::make_intrusive<Counting>(gloo->c10d()));
      }});
}

Tree::Map with(const char* backward, bool forward, bool limited = true, const char* mode = "FULL_SHARD") {
  return Tree::Map{{"sharding_strategy", mode},
                   {"backward_prefetch", backward},
                   {"forward_prefetch", forward},
                   {"limit_all_gathers", limited}};
}

// A pass that leaves out a block, one in another order, one without gradients, one that fails, and usual ones.
std::vector<at::Tensor> train(int ranks, const Tree::Map& params) {
  Fabric fabric(settings(ranks, params));
  fabric.launch();
  auto raw = make_text();
  auto [model, optimizer] = fabric.setup(raw, adamw);
  auto through = [&, &model = model](std::vector<int> blocks, const at::Tensor& ids) {
    return model.call(
        [blocks](TextImpl& net, const at::Tensor& x) {
          auto hidden = net.wte(x);
          for (int i : blocks) {
            if (i < 0) throw std::domain_error("mid-pass");
            hidden = net.blocks[i]->as<Block>()->forward(hidden);
          }
          return net.lm_head(hidden);
        },
        ids);
  };
  const std::vector<std::vector<int>> routes = {{0, 1, 2}, {0, 1, 2}, {0, 2}, {2, 1, 0}, {0, 1, 2, 1}, {0, 1, 2}};
  for (std::size_t step = 0; step < routes.size(); ++step) {
    auto ids = batch(static_cast<int>(step), 0, fabric.global_rank(), ranks);
    optimizer.zero_grad();
    fabric.backward(loss_of(through(routes[step], ids), ids));
    optimizer.step();
    {
      torch::NoGradGuard no_grad;
      through({1, 0}, ids);
    }
    RANK_CHECK(error_of([&] { through({0, -1}, ids); }) == "mid-pass");
    RANK_CHECK(raw->wte->weight.size(0) < 11);  // nothing stays gathered
  }
  auto whole = fabric::summon(model);
  std::vector<at::Tensor> parameters;
  for (const auto& parameter : raw->parameters()) parameters.push_back(parameter.detach().clone());
  return parameters;
}

}  // namespace

RANKS_TEST("gathering ahead changes no number, whatever order the passes take", "[fsdp][prefetch]", 2) {
  at::set_num_threads(1);
  for (const char* mode : {"FULL_SHARD", "SHARD_GRAD_OP"}) {
    auto expected = train(2, with("none", false, true, mode));
    for (const char* backward : {"none", "BACKWARD_PRE", "BACKWARD_POST"})
      for (bool forward : {false, true})
        for (bool limited : {true, false}) {
          auto got = train(2, with(backward, forward, limited, mode));
          for (std::size_t i = 0; i < got.size(); ++i) RANK_CHECK(torch::equal(got[i], expected[i]));
        }
  }
}

RANKS_TEST("the next unit is on its way while one computes", "[fsdp][prefetch]", 2) {
  at::set_num_threads(1);
  register_counting();
  // How many gathers were begun when each block has its parameters, in the second pass: forward, then backward.
  auto begun = [&](Tree::Map params) {
    params["process_group"] = Tree::Map{{"backend", "counting"}};
    Fabric fabric(settings(2, params));
    fabric.launch();
    auto model = fabric.setup(make_text());
    std::vector<int> seen;
    for (int pass = 0; pass < 2; ++pass) {
      gathers = 0;
      seen.clear();
      auto logits = model.call(
          [&](TextImpl& net, const at::Tensor& x) {
            auto hidden = net.wte(x);
            for (const auto& each : *net.blocks) {
              auto block = each->as<Block>();
              hidden = block->norm(hidden);  // its unit is there from here on
              seen.push_back(gathers);
              hidden.register_hook([&](const at::Tensor&) { seen.push_back(gathers); });
              hidden = hidden + block->down(torch::tanh(block->up(hidden)));
            }
            return net.lm_head(hidden);
          },
          batch(pass, 0, rank, 2));
      fabric.backward(logits.sum());
    }
    return seen;
  };
  // wte and three blocks forward, the tied wte again as head, which stays; three blocks backward.
  auto require = [&](Tree::Map params, const std::vector<int>& expected) {
    auto got = begun(std::move(params));
    std::string text;
    for (int each : got) text += std::to_string(each) + " ";
    if (got != expected) throw std::runtime_error("gathers begun were " + text);
  };
  require(with("none", false), {2, 3, 4, 6, 7, 8});
  require(with("none", true), {3, 4, 5, 6, 7, 8});
  require(with("none", true, false), {4, 5, 5, 6, 7, 8});
  require(with("BACKWARD_PRE", false), {2, 3, 4, 7, 8, 8});
  require(with("BACKWARD_POST", false), {2, 3, 4, 6, 7, 8});
}

RANKS_TEST("settings of gathering ahead have PyTorch's names", "[fsdp][prefetch]", 2) {
  auto text = error_of([&] { Fabric fabric(settings(2, Tree::Map{{"backward_prefetch", "BACKWARD_PRI"}})); });
  RANK_CHECK(has(text, "BACKWARD_PRE"));
}
