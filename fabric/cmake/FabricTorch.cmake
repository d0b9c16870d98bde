# Finds LibTorch and offers it as the target TorchFabric::torch. In this order: FABRIC_TORCH_ROOT, an existing target
# `torch_cpu` of the embedding project, Torch_DIR, the active Python's torch, the per-user cache that `./dev` fills.
# find_package(Torch) is not used: the config of a CUDA wheel insists on a CUDA toolkit, which CPU builds do not need.
include_guard(GLOBAL)
set(FABRIC_TORCH_VERSION 2.15.0 CACHE STRING "LibTorch version to look for in the per-user cache")

if(FABRIC_TORCH_ROOT)
  # as the user says
elseif(TARGET torch_cpu)
  get_target_property(is_imported torch_cpu IMPORTED)
  if(NOT is_imported)
    message(FATAL_ERROR "The target torch_cpu is built by this project; TorchFabric needs a LibTorch that is installed. Set "
      "FABRIC_TORCH_ROOT to a folder with include/ and lib/libtorch_cpu.so.")
  endif()
  # Its files and not the target itself, which also links protobuf and lacks the C++ frontend's include folder.
  get_target_property(library torch_cpu LOCATION)
  get_filename_component(FABRIC_TORCH_ROOT "${library}/../.." ABSOLUTE)
elseif(Torch_DIR)
  get_filename_component(FABRIC_TORCH_ROOT "${Torch_DIR}/../../.." ABSOLUTE)
else()
  # What was found stays, whatever the environment of a later run; what is named above then still comes first.
  set(candidates ${FABRIC_TORCH_FOUND})
  if(DEFINED ENV{VIRTUAL_ENV} OR DEFINED ENV{CONDA_PREFIX})
    execute_process(
      COMMAND python3 -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE root ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    list(APPEND candidates ${root})
  endif()
  if(DEFINED ENV{TORCHFABRIC_CACHE})
    list(APPEND candidates $ENV{TORCHFABRIC_CACHE}/libtorch-${FABRIC_TORCH_VERSION}/torch)
  elseif(DEFINED ENV{XDG_CACHE_HOME})
    list(APPEND candidates $ENV{XDG_CACHE_HOME}/torchfabric/libtorch-${FABRIC_TORCH_VERSION}/torch)
  endif()
  list(APPEND candidates $ENV{HOME}/.cache/torchfabric/libtorch-${FABRIC_TORCH_VERSION}/torch)
  foreach(root IN LISTS candidates)
    if(EXISTS ${root}/lib/libtorch_cpu.so)
      set(FABRIC_TORCH_FOUND ${root} CACHE INTERNAL "LibTorch that was found where nobody named one")
      set(FABRIC_TORCH_ROOT ${root})
      break()
    endif()
  endforeach()
endif()
if(NOT FABRIC_TORCH_ROOT)
  message(FATAL_ERROR "LibTorch was not found. Run ./dev setup, or pass -DFABRIC_TORCH_ROOT=<folder with include/ and "
    "lib/libtorch_cpu.so>, for instance the torch folder of an unpacked PyPI wheel.")
endif()
if(NOT EXISTS ${FABRIC_TORCH_ROOT}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "${FABRIC_TORCH_ROOT} is to be LibTorch's folder (FABRIC_TORCH_ROOT, the target torch_cpu or "
    "Torch_DIR says so), but holds no lib/libtorch_cpu.so")
endif()
set(FABRIC_TORCH_LIB_DIR ${FABRIC_TORCH_ROOT}/lib)

if(NOT TARGET TorchFabric::torch)
  add_library(TorchFabric::torch INTERFACE IMPORTED GLOBAL)
  # libtorch_cpu finds its CUDA runtime beside itself in the wheel's folders; the linker needs the same hint.
  get_filename_component(site ${FABRIC_TORCH_ROOT} DIRECTORY)
  target_include_directories(TorchFabric::torch SYSTEM INTERFACE
    ${FABRIC_TORCH_ROOT}/include ${FABRIC_TORCH_ROOT}/include/torch/csrc/api/include)
  target_link_libraries(TorchFabric::torch INTERFACE
    ${FABRIC_TORCH_ROOT}/lib/libtorch_cpu.so ${FABRIC_TORCH_ROOT}/lib/libc10.so)
  target_link_options(TorchFabric::torch INTERFACE
    LINKER:-rpath-link,${FABRIC_TORCH_ROOT}/lib:${site}/nvidia/cu13/lib LINKER:--allow-shlib-undefined)
  target_compile_features(TorchFabric::torch INTERFACE cxx_std_20)
endif()

file(STRINGS ${FABRIC_TORCH_ROOT}/include/torch/headeronly/version.h torch_minor_line REGEX "define TORCH_VERSION_MINOR")
string(REGEX MATCH "[0-9]+$" FABRIC_TORCH_MINOR "${torch_minor_line}")
if(FABRIC_TORCH_MINOR LESS 11)
  message(FATAL_ERROR "TorchFabric needs LibTorch 2.11 to 2.15; ${FABRIC_TORCH_ROOT} is 2.${FABRIC_TORCH_MINOR}")
elseif(FABRIC_TORCH_MINOR GREATER 15)
  message(WARNING "TorchFabric is made for LibTorch 2.11 to 2.15 and was not tried with 2.${FABRIC_TORCH_MINOR}, which "
    "${FABRIC_TORCH_ROOT} is")
endif()
set_property(TARGET TorchFabric::torch PROPERTY FABRIC_TORCH_MINOR ${FABRIC_TORCH_MINOR})
