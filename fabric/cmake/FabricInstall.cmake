# Install rules, the CMake package TorchFabric and a pkg-config file.
include_guard(GLOBAL)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/TorchFabric)

# The library finds its plug-ins beside itself and LibTorch where it was at build time.
set_target_properties(fabric PROPERTIES INSTALL_RPATH "$ORIGIN;${FABRIC_TORCH_LIB_DIR}")
set(libraries fabric)
foreach(plugin fabric_cuda fabric_mpi)
  if(TARGET ${plugin})
    list(APPEND libraries ${plugin})
    set_target_properties(${plugin} PROPERTIES INSTALL_RPATH "$ORIGIN;${FABRIC_TORCH_LIB_DIR}")
  endif()
endforeach()
# Plug-ins are loaded, not linked, so only the library itself is exported.
# Its headers are those that the rooms list with fabric_public_headers().
install(TARGETS fabric EXPORT TorchFabricTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
list(REMOVE_ITEM libraries fabric)
if(libraries)
  install(TARGETS ${libraries} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()

install(EXPORT TorchFabricTargets NAMESPACE TorchFabric:: DESTINATION ${package_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/TorchFabricConfig.cmake.in
  ${PROJECT_BINARY_DIR}/package/TorchFabricConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/TorchFabricConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/package/TorchFabricConfig.cmake
  ${PROJECT_BINARY_DIR}/package/TorchFabricConfigVersion.cmake ${CMAKE_CURRENT_LIST_DIR}/FabricTorch.cmake
  DESTINATION ${package_dir})

cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
  OUTPUT_VARIABLE prefix_from_pkgconfig)
get_filename_component(torch_site ${FABRIC_TORCH_ROOT} DIRECTORY)
configure_file(${CMAKE_CURRENT_LIST_DIR}/torchfabric.pc.in ${PROJECT_BINARY_DIR}/package/torchfabric.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/package/torchfabric.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
