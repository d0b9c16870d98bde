# Compile settings shared by the project's own targets.
include_guard(GLOBAL)
add_library(fabric_settings INTERFACE)
target_compile_features(fabric_settings INTERFACE cxx_std_20)
target_compile_options(fabric_settings INTERFACE -Wall -Wextra -Wno-missing-field-initializers
  $<$<BOOL:${FABRIC_WERROR}>:-Werror>)
target_include_directories(fabric_settings INTERFACE ${PROJECT_SOURCE_DIR})
set(FABRIC_SANITIZE "" CACHE STRING "Sanitizer for everything that is built: address, thread or undefined (./dev sanitize)")
if(FABRIC_SANITIZE)
  target_compile_options(fabric_settings INTERFACE -fsanitize=${FABRIC_SANITIZE} -fno-omit-frame-pointer
    # Else undefined behaviour is told of and the test passes.
    $<$<STREQUAL:${FABRIC_SANITIZE},undefined>:-fno-sanitize-recover=undefined>)
  target_link_options(fabric_settings INTERFACE -fsanitize=${FABRIC_SANITIZE})
endif()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
find_program(FABRIC_CCACHE ccache)
if(FABRIC_CCACHE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FABRIC_CCACHE})
endif()

# LibTorch's headers take most of a program's compile time: they are precompiled once for all programs here. A program
# and not a library, so that it is compiled with their flags.
if(FABRIC_TESTS OR FABRIC_EXAMPLES OR FABRIC_BENCH)
  file(WRITE ${CMAKE_BINARY_DIR}/torch_headers.cpp "int main() {}\n")
  add_executable(fabric_torch_headers ${CMAKE_BINARY_DIR}/torch_headers.cpp)
  target_link_libraries(fabric_torch_headers PRIVATE fabric_settings TorchFabric::fabric)
  target_precompile_headers(fabric_torch_headers PRIVATE <torch/torch.h>)
endif()
function(fabric_use_torch_headers name)
  target_compile_options(${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
  target_precompile_headers(${name} REUSE_FROM fabric_torch_headers)
endfunction()

# fabric_public_headers(<path>...): headers of the library that are installed, as paths below fabric/. Each room lists its
# own; tests/headers.py compares the lists with the files that are there and compiles each header alone.
function(fabric_public_headers)
  set(headers ${ARGN})
  list(TRANSFORM headers PREPEND ${PROJECT_SOURCE_DIR}/fabric/)
  target_sources(fabric PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${headers})
endfunction()

# Tests run several at a time. Those that compute stand back behind those that wait, so that a processor is there when
# something that is waited for comes. Not far, lest other work on the machine starves them.
find_program(FABRIC_NICE nice)
set(FABRIC_STANDS_BACK)
if(FABRIC_NICE)
  set(FABRIC_STANDS_BACK ${FABRIC_NICE} -n 5)
endif()

# fabric_add_tests(<name> SOURCES ... [LIBRARIES ...] [TIMEOUT s] [COST n] [WAITS] [CASES pattern]): one Catch2 program,
# registered as one CTest test. LIBRARIES defaults to TorchFabric::fabric; tests of the LibTorch-free part pass fabric_base.
# COST: that of the long ones, which begin first. WAITS: it mostly waits for time to pass, and looks at how much did. CASES:
# the test runs these cases of the program alone, and another one the rest.
function(fabric_add_tests name)
  if(NOT FABRIC_TESTS)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 arg "WAITS" "TIMEOUT;COST;CASES" "SOURCES;LIBRARIES")
  if(NOT arg_LIBRARIES)
    set(arg_LIBRARIES TorchFabric::fabric)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set(before ${FABRIC_STANDS_BACK})
  if(arg_WAITS)
    set(before)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE fabric_settings fabric_test_support ${arg_LIBRARIES})
  if("TorchFabric::fabric" IN_LIST arg_LIBRARIES)
    target_compile_options(${name} PRIVATE -O1)  # which compiles sooner
    fabric_use_torch_headers(${name})
  endif()
  add_test(NAME ${name} COMMAND ${before} $<TARGET_FILE:${name}> ${arg_CASES})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT})
  if(arg_COST)
    set_tests_properties(${name} PROPERTIES COST ${arg_COST})
  endif()
endfunction()

# fabric_add_test_program(<name> SOURCES ...): a helper program that tests start; not a test itself.
function(fabric_add_test_program name)
  if(NOT FABRIC_TESTS)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBRARIES")
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE fabric_settings ${arg_LIBRARIES})
  if("TorchFabric::fabric" IN_LIST arg_LIBRARIES)
    fabric_use_torch_headers(${name})
  endif()
endfunction()

if(FABRIC_TESTS)
  find_package(Catch2 QUIET REQUIRED)
  set(support ${PROJECT_SOURCE_DIR}/tests/support)
  add_library(fabric_test_support STATIC ${support}/main.cpp ${support}/rank_process.cpp ${support}/rank_server.cpp
    ${support}/ranks.cpp)
  # Object by object: main.cpp alone defines what makes Catch2 a program.
  set_target_properties(fabric_test_support PROPERTIES UNITY_BUILD OFF)
  target_include_directories(fabric_test_support PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(fabric_test_support PUBLIC Catch2::Catch2)
  target_compile_features(fabric_test_support PUBLIC cxx_std_20)
endif()
