# cmake -DBUILD=<build tree of fastffn> -DWORK=<empty folder> [-DCONFIG=Release] -P run.cmake
# cmake -DPACKAGE=<folder of fastffn-config.cmake> -DWORK=<empty folder> -P run.cmake
#
# Installs fastffn into a prefix (or takes the package of a wheel), builds the examples against it alone, and runs them.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    string(JOIN " " line ${ARGN})
    message(FATAL_ERROR "failed (${status}): ${line}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
if(PACKAGE)
  set(where "-Dfastffn_DIR=${PACKAGE}")
else()
  run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${WORK}/prefix")
  set(where "-DCMAKE_PREFIX_PATH=${WORK}/prefix")
endif()
run(${CMAKE_COMMAND} -S "${CMAKE_CURRENT_LIST_DIR}" -B "${WORK}/build" ${where} -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run(${CMAKE_COMMAND} --build "${WORK}/build")
run("${WORK}/build/example")
run("${WORK}/build/example_c")
