# Defines the target `fabric_mpi` (libtorchfabric_mpi.so: process groups over MPI) when an MPI for C is at hand. It is a
# library of its own, so that programs that use no MPI load none.
include_guard(GLOBAL)
if(NOT FABRIC_WITH_MPI STREQUAL "OFF")
  find_package(MPI QUIET COMPONENTS C)
  if(MPI_C_FOUND)
    add_library(fabric_mpi SHARED)
    set_target_properties(fabric_mpi PROPERTIES OUTPUT_NAME torchfabric_mpi
      LIBRARY_OUTPUT_DIRECTORY $<TARGET_FILE_DIR:fabric> INSTALL_RPATH "$ORIGIN")
    target_compile_definitions(fabric_mpi PRIVATE OMPI_SKIP_MPICXX MPICH_SKIP_MPICXX)
    target_link_libraries(fabric_mpi PRIVATE fabric_settings fabric MPI::MPI_C)
    message(STATUS "MPI plug-in: built with ${MPI_C_INCLUDE_DIRS}")
  elseif(FABRIC_WITH_MPI STREQUAL "ON")
    message(FATAL_ERROR "FABRIC_WITH_MPI is ON, but no MPI was found. Install libopenmpi-dev and openmpi-bin (Debian), or "
      "set MPI_HOME")
  else()
    message(STATUS "MPI plug-in: not built, since no MPI was found (Debian: libopenmpi-dev)")
  endif()
endif()
