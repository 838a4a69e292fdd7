# Installs the library as a CMake package: find_package(permafrost CONFIG), permafrost::permafrost.
include(CMakePackageConfigHelpers)
install(TARGETS permafrost permafrost_kernels permafrost_engine permafrost_io permafrost_models
                permafrost_peft
        EXPORT permafrost-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT permafrost-targets NAMESPACE permafrost::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/permafrost)
foreach(FOLDER kernels engine io models peft)
  install(DIRECTORY ${FOLDER} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/permafrost
          FILES_MATCHING PATTERN "*.h")
endforeach()
configure_package_config_file(cmake/permafrost-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/permafrost-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/permafrost)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/permafrost-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/permafrost-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/permafrost-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/permafrost)
