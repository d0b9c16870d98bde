# Finds LibTorch and offers it as the target TorchFabric::torch. In this order: an existing target `torch_cpu` of the
# embedding project, FABRIC_TORCH_ROOT or Torch_DIR, the active Python's torch, the per-user cache that `./dev` fills.
# find_package(Torch) is not used: the config of a CUDA wheel insists on a CUDA toolkit, which CPU builds do not need.
include_guard(GLOBAL)
set(FABRIC_TORCH_VERSION 2.15.0 CACHE STRING "LibTorch version to look for in the per-user cache")

if(NOT FABRIC_TORCH_ROOT)
  set(candidates)
  if(Torch_DIR)
    get_filename_component(root "${Torch_DIR}/../../.." ABSOLUTE)
    list(APPEND candidates ${root})
  elseif(NOT TARGET torch_cpu)
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
  endif()
  foreach(root IN LISTS candidates)
    if(EXISTS ${root}/lib/libtorch_cpu.so)
      set(FABRIC_TORCH_ROOT ${root} CACHE PATH "Folder of LibTorch, with include/ and lib/" FORCE)
      break()
    endif()
  endforeach()
endif()

if(NOT TARGET TorchFabric::torch)
  add_library(TorchFabric::torch INTERFACE IMPORTED GLOBAL)
  if(FABRIC_TORCH_ROOT)
    if(NOT EXISTS ${FABRIC_TORCH_ROOT}/lib/libtorch_cpu.so)
      message(FATAL_ERROR "FABRIC_TORCH_ROOT=${FABRIC_TORCH_ROOT} holds no lib/libtorch_cpu.so")
    endif()
    # libtorch_cpu finds its CUDA runtime beside itself in the wheel's folders; the linker needs the same hint.
    get_filename_component(site ${FABRIC_TORCH_ROOT} DIRECTORY)
    target_include_directories(TorchFabric::torch SYSTEM INTERFACE
      ${FABRIC_TORCH_ROOT}/include ${FABRIC_TORCH_ROOT}/include/torch/csrc/api/include)
    target_link_libraries(TorchFabric::torch INTERFACE
      ${FABRIC_TORCH_ROOT}/lib/libtorch_cpu.so ${FABRIC_TORCH_ROOT}/lib/libc10.so)
    target_link_options(TorchFabric::torch INTERFACE
      LINKER:-rpath-link,${FABRIC_TORCH_ROOT}/lib:${site}/nvidia/cu13/lib LINKER:--allow-shlib-undefined)
    set(FABRIC_TORCH_LIB_DIR ${FABRIC_TORCH_ROOT}/lib)
  elseif(TARGET torch_cpu)
    target_link_libraries(TorchFabric::torch INTERFACE torch_cpu c10)
    get_target_property(torch_location torch_cpu LOCATION)
    get_filename_component(FABRIC_TORCH_LIB_DIR ${torch_location} DIRECTORY)
    get_filename_component(FABRIC_TORCH_ROOT ${FABRIC_TORCH_LIB_DIR} DIRECTORY)
  else()
    message(FATAL_ERROR "LibTorch was not found. Run ./dev setup, or pass -DFABRIC_TORCH_ROOT=<folder with include/ and "
      "lib/libtorch_cpu.so>, for instance the torch folder of an unpacked PyPI wheel.")
  endif()
  target_compile_features(TorchFabric::torch INTERFACE cxx_std_20)
endif()

file(STRINGS ${FABRIC_TORCH_ROOT}/include/torch/headeronly/version.h torch_minor_line REGEX "define TORCH_VERSION_MINOR")
string(REGEX MATCH "[0-9]+$" FABRIC_TORCH_MINOR "${torch_minor_line}")
if(FABRIC_TORCH_MINOR LESS 11)
  message(FATAL_ERROR "TorchFabric needs LibTorch 2.11 to 2.15; ${FABRIC_TORCH_ROOT} is 2.${FABRIC_TORCH_MINOR}")
endif()
set_property(TARGET TorchFabric::torch PROPERTY FABRIC_TORCH_MINOR ${FABRIC_TORCH_MINOR})
