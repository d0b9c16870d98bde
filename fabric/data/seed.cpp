#include <fabric/data/seed.h>

#include <charconv>
#include <mutex>
#include <string>

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/Generator.h>

#include <fabric/base/error.h>
#include <fabric/base/log.h>

namespace fabric {
namespace {

constexpr std::int64_t kLargestSeed = 4294967295;
constexpr const char* kSeedVariable = "FABRIC_SEED";
constexpr const char* kPeerVariable = "PL_GLOBAL_SEED";
constexpr const char* kWorkersVariable = "FABRIC_SEED_WORKERS";

void check_bounds(std::int64_t seed, const std::string& source) {
  if (seed < 0 || seed > kLargestSeed)
    throw ConfigError(source + " is " + std::to_string(seed) + ": seeds go from 0 to " + std::to_string(kLargestSeed));
}

std::optional<std::int64_t> seed_from(const EnvReader& env, const char* name) {
  auto text = env.get(name);
  if (!text || text->empty()) return std::nullopt;
  std::int64_t seed = 0;
  auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), seed);
  if (error != std::errc() || end != text->data() + text->size())
    throw ConfigError(std::string(name) + "='" + *text + "' is no seed: write a whole number from 0 to " +
                      std::to_string(kLargestSeed));
  check_bounds(seed, name);
  return seed;
}

std::optional<std::int64_t> seed_from(const EnvReader& env) {
  auto seed = seed_from(env, kSeedVariable);
  return seed ? seed : seed_from(env, kPeerVariable);
}

at::Tensor generator_state(at::Generator generator) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get_state();
}

void set_generator_state(at::Generator generator, const at::Tensor& state) {
  std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(state);
}

// The generators of the process's accelerator, of which LibTorch has one kind, under its name: "cuda".
struct DeviceGenerators {
  std::string kind;
  std::vector<at::Generator> generators;

  DeviceGenerators() {
    auto type = at::getAccelerator();
    if (!type) return;
    kind = c10::DeviceTypeName(*type, /*lower_case=*/true);
    for (c10::DeviceIndex index = 0; index < at::accelerator::deviceCount(); ++index)
      generators.push_back(at::globalContext().defaultGenerator(c10::Device(*type, index)));
  }
};

}  // namespace

std::uint64_t seed_everything(std::optional<std::int64_t> seed, bool workers, bool verbose,
                              const std::shared_ptr<EnvReader>& env) {
  if (seed) check_bounds(*seed, "the seed");
  if (!seed) seed = seed_from(*env);
  if (!seed) {
    seed = 0;
    if (verbose) log::rank_zero_warn("no seed was given and FABRIC_SEED is not set: the seed is 0");
  }
  at::manual_seed(static_cast<std::uint64_t>(*seed));
  env->set(kSeedVariable, std::to_string(*seed));
  env->set(kWorkersVariable, workers ? "1" : "0");
  if (verbose) log::info("seed set to " + std::to_string(*seed));
  return static_cast<std::uint64_t>(*seed);
}

void reset_seed(const std::shared_ptr<EnvReader>& env) {
  if (auto seed = seed_from(*env)) seed_everything(*seed, seeds_workers(env), false, env);
}

std::optional<std::uint64_t> global_seed(const std::shared_ptr<EnvReader>& env) {
  auto seed = seed_from(*env);
  return seed ? std::optional<std::uint64_t>(static_cast<std::uint64_t>(*seed)) : std::nullopt;
}

bool seeds_workers(const std::shared_ptr<EnvReader>& env) { return env->get_or(kWorkersVariable, "1") != "0"; }

Value rng_state() {
  Value state;
  state["cpu"] = generator_state(at::globalContext().defaultGenerator(c10::Device(c10::kCPU)));
  DeviceGenerators devices;
  if (!devices.generators.empty()) {
    Value::List states;
    for (const auto& generator : devices.generators) states.emplace_back(generator_state(generator));
    state[devices.kind] = std::move(states);
  }
  return state;
}

void set_rng_state(const Value& state) {
  const Value* cpu = state.find("cpu");
  if (!cpu || !cpu->is<at::Tensor>())
    throw MisuseError(
        "this is no state of random generators: it has no tensor named 'cpu'. Pass what rng_state() gave");
  set_generator_state(at::globalContext().defaultGenerator(c10::Device(c10::kCPU)), cpu->as<at::Tensor>().cpu());
  DeviceGenerators devices;
  const Value* saved = devices.kind.empty() ? nullptr : state.find(devices.kind);
  if (!saved) return;
  const auto& states = saved->as_list();
  for (std::size_t i = 0; i < std::min(devices.generators.size(), states.size()); ++i)
    set_generator_state(devices.generators[i], states[i].as<at::Tensor>().cpu());
}

}  // namespace fabric
