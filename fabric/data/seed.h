#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include <fabric/base/env_reader.h>
#include <fabric/state/state.h>

namespace fabric {

/// Seeds LibTorch's generators (CPU, and the devices that are there) with the same number on every rank and returns it.
/// Without a seed it is read from FABRIC_SEED, then PL_GLOBAL_SEED, else it is 0 with a warning. Sets FABRIC_SEED and
/// FABRIC_SEED_WORKERS, so that processes started later and loaders made later follow. Throws ConfigError for a number
/// outside 0 … 2^32 - 1 or a variable that is no number.
/// `workers`: loaders derive the random numbers of their workers from the seed; off, from LibTorch's generator.
FABRIC_API std::uint64_t seed_everything(std::optional<std::int64_t> seed = std::nullopt, bool workers = true,
                                         bool verbose = true, const std::shared_ptr<EnvReader>& env = process_env());
/// Goes back to the seed that seed_everything set; does nothing when it was never called.
FABRIC_API void reset_seed(const std::shared_ptr<EnvReader>& env = process_env());
/// What seed_everything set, here or in the process that started this one.
FABRIC_API std::optional<std::uint64_t> global_seed(const std::shared_ptr<EnvReader>& env = process_env());
/// False after seed_everything(…, workers = false).
FABRIC_API bool seeds_workers(const std::shared_ptr<EnvReader>& env = process_env());

/// Three 64-bit numbers for one worker: the first seeds its generator, the others are free for generators of the
/// user's.
struct WorkerSeeds {
  std::uint64_t generator = 0;
  std::uint64_t second = 0;
  std::uint64_t third = 0;
  bool operator==(const WorkerSeeds&) const = default;
};

/// Spreads all bits of `x`: equal inputs give equal outputs, different inputs different ones.
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xFF51AFD7ED558CCDull;
  x ^= x >> 33;
  x *= 0xC4CEB9FE1A85EC53ull;
  return x ^ (x >> 33);
}

/// Seeds that differ for every worker and rank below 65,536 and every 32-bit base.
constexpr WorkerSeeds worker_seed(std::uint64_t base, std::uint64_t worker, std::uint64_t rank) {
  std::uint64_t x = mix_bits(base << 32 | worker << 16 | rank);
  auto step = [&x] { return x = 6364136223846793005ull * x + 1; };
  WorkerSeeds seeds;
  seeds.generator = step();
  seeds.second = step();
  seeds.third = step();
  return seeds;
}

/// The state of LibTorch's default generators: {"cpu": bytes, "cuda": one entry of bytes per device}.
FABRIC_API Value rng_state();
/// Puts such a state back. Throws MisuseError for something else. Devices that are not there are skipped.
FABRIC_API void set_rng_state(const Value& state);

/// The generators as an entry of a checkpoint: fabric.save(path, {{"model", model}, {"rng", rng}}).
class FABRIC_API RngState : public Stateful {
 public:
  Value state_dict() const override { return rng_state(); }
  void load_state_dict(const Value& state) override { set_rng_state(state); }
  /// Each rank gets its own back; one that the saving run did not have keeps the state that it is in.
  bool per_rank() const override { return true; }
};

}  // namespace fabric
