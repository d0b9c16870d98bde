# cmake -DMODE=find_package|add_subdirectory|pkg_config|wrong_torch -DWORK_DIR=… -DPREFIX=… -DSOURCE_DIR=… -DTORCH_ROOT=…
#       -DCXX=… -DLAUNCHER=… -DHAS_MPI=0|1 -P run_consumer.cmake: builds the consumer in a folder outside of the tree and
# runs it.
cmake_minimum_required(VERSION 3.25)
set(consumer ${CMAKE_CURRENT_LIST_DIR}/consumer)
set(build ${WORK_DIR}/${MODE})
file(REMOVE_RECURSE ${build})
file(MAKE_DIRECTORY ${build})
# Neither the build's environment nor the user's may help the consumer.
unset(ENV{LD_LIBRARY_PATH})
set(configure ${CMAKE_COMMAND} -S ${consumer} -B ${build} -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=${CXX}
  -DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER} -DCMAKE_C_COMPILER_LAUNCHER=${LAUNCHER})

if(MODE STREQUAL "wrong_torch")
  set(fake ${build}/fake/torch)
  file(WRITE ${fake}/lib/libtorch_cpu.so "")
  file(WRITE ${fake}/lib/libc10.so "")
  file(WRITE ${fake}/include/torch/headeronly/version.h "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 99\n")
  execute_process(COMMAND ${configure} -DCMAKE_PREFIX_PATH=${PREFIX} -DFABRIC_TORCH_ROOT=${fake}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(result EQUAL 0 OR NOT output MATCHES "was[ \n]+built[ \n]+with[ \n]+LibTorch")
    message(FATAL_ERROR "a LibTorch of another minor was taken, or refused without a reason:\n${output}")
  endif()
  return()
endif()

function(installed_flags)  # the options of pkg-config
  find_program(PKG_CONFIG NAMES pkg-config pkgconf REQUIRED)
  file(GLOB_RECURSE pc ${PREFIX}/torchfabric.pc)
  get_filename_component(folder "${pc}" DIRECTORY)
  set(ENV{PKG_CONFIG_PATH} ${folder})
  execute_process(COMMAND ${PKG_CONFIG} ${ARGV} torchfabric OUTPUT_VARIABLE flags COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  set(flags ${flags} PARENT_SCOPE)
endfunction()

if(MODE STREQUAL "pkg_config")
  # In two steps, the first of which a compiler's cache knows from the last run.
  installed_flags(--cflags)
  execute_process(COMMAND ${LAUNCHER} ${CXX} -Wall -Wextra -Werror ${flags} -c ${consumer}/main.cpp -o ${build}/main.o
    COMMAND_ERROR_IS_FATAL ANY)
  installed_flags(--libs)
  execute_process(COMMAND ${CXX} ${build}/main.o -o ${build}/consumer ${flags} COMMAND_ERROR_IS_FATAL ANY)
else()
  if(MODE STREQUAL "add_subdirectory")
    set(where -DTORCHFABRIC_SOURCE_DIR=${SOURCE_DIR} -DFABRIC_TORCH_ROOT=${TORCH_ROOT})
  else()
    set(where -DCMAKE_PREFIX_PATH=${PREFIX})
  endif()
  execute_process(COMMAND ${configure} ${where} COMMAND_ERROR_IS_FATAL ANY OUTPUT_QUIET)
  set(target consumer)
  # Building the library once more takes as long as the first time. Unless that is asked for, the consumer is compiled
  # with what the targets of its own build say, and linked with the library that is there.
  if(MODE STREQUAL "add_subdirectory" AND NOT DEFINED ENV{FABRIC_WHOLE_BUILDS})
    set(target CMakeFiles/consumer.dir/main.cpp.o)
  endif()
  execute_process(COMMAND ${CMAKE_COMMAND} --build ${build} --target ${target} -j 2 RESULT_VARIABLE result
    OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(result)
    message(FATAL_ERROR "the consumer does not build:\n${output}")
  endif()
  if(NOT target STREQUAL "consumer")
    installed_flags(--libs)
    execute_process(COMMAND ${CXX} ${build}/${target} -o ${build}/consumer ${flags} COMMAND_ERROR_IS_FATAL ANY)
  endif()
endif()
execute_process(COMMAND ${build}/consumer COMMAND_ERROR_IS_FATAL ANY)

# The plug-in for MPI is loaded out of the prefix.
find_program(MPIRUN mpirun)
if(MODE STREQUAL "find_package" AND HAS_MPI AND MPIRUN)
  set(ENV{OMPI_ALLOW_RUN_AS_ROOT} 1)
  set(ENV{OMPI_ALLOW_RUN_AS_ROOT_CONFIRM} 1)
  set(ENV{OMP_NUM_THREADS} 1)
  execute_process(COMMAND ${MPIRUN} --oversubscribe --bind-to none -n 2 ${build}/consumer mpi RESULT_VARIABLE result
    OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(result OR NOT output MATCHES "rank 1 of 2")
    message(FATAL_ERROR "two ranks over MPI ended with ${result}:\n${output}")
  endif()
  message(STATUS "${output}")
endif()
file(REMOVE_RECURSE ${build})
