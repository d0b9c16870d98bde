# Read by ./dev: the Debian packages that a build needs.

require_packages() {
  [[ ${TORCHFABRIC_PACKAGES:-} == skip ]] && return
  if ! command -v dpkg-query >/dev/null; then
    printf 'dev: not a Debian system; these are expected to be there: %s\n' "$*" >&2
    return
  fi
  local missing=() package
  for package in "$@"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local install=(apt-get install -y --no-install-recommends "${missing[@]}") as_root=()
  if ((EUID != 0)); then
    if ! { command -v sudo && sudo -n true; } >/dev/null 2>&1; then
      die "Debian packages are missing, and this user may not install them. Type this, then try again:" "" \
        "  sudo sh -c 'apt-get update && ${install[*]}'" "" \
        "(If they are in a prefix of your own: set CMAKE_PREFIX_PATH and TORCHFABRIC_PACKAGES=skip.)"
    fi
    as_root=(sudo -n)
  fi
  step "installing Debian packages: ${missing[*]}"
  local log attempt
  log=$(mktemp)
  for attempt in 1 2 3 4 5 6; do
    if { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"; } \
      >"$log" 2>&1; then
      rm -f "$log"
      return
    fi
    grep -q 'Could not get lock' "$log" || break
    ((attempt > 1)) || step "waiting for another package manager to end"
    sleep 10
  done
  tail -n 20 "$log" >&2
  rm -f "$log"
  die "the packages could not be installed (last lines above). The command was:" "  apt-get update && ${install[*]}"
}

# require_build_packages [MINOR…]: all that building with these LibTorch minors needs, asked for at once.
require_build_packages() {
  local packages=(g++ cmake ninja-build ccache pkg-config libopenmpi-dev openmpi-bin libcli11-dev libspdlog-dev catch2
    libyaml-cpp-dev zlib1g-dev libsodium-dev python3) minor
  for minor in "$@"; do
    [[ -e $(cached "$minor")/torch/lib/libtorch_cpu.so ]] && continue
    packages+=(unzip)
    [[ ${TORCHFABRIC_WHEELS:-} ]] || packages+=(python3-pip ca-certificates)
    break
  done
  require_packages "${packages[@]}"
}

# A real SLURM, a real sshd, networks of namespaces and MPICH's mpiexec for their tests, of which root alone can start the
# first three; without them they say so.
require_test_packages() {
  ((EUID == 0)) || return 0
  require_packages slurmctld slurmd slurm-client openssh-server openssh-client iproute2 mpich
}
