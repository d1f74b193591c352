# cmake -DNM=<nm> -DPLUGIN=<libfastffn_cuda.so> -P plugin_symbols.cmake
#
# The plugin exports one function, and asks for none of Python's, the driver's or the CUDA runtime's.
execute_process(COMMAND ${NM} -D --defined-only ${PLUGIN} OUTPUT_VARIABLE exports COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${NM} -D --undefined-only ${PLUGIN} OUTPUT_VARIABLE imports COMMAND_ERROR_IS_FATAL ANY)
if(NOT exports MATCHES "^[0-9a-f]+ T fastffn_cuda_plugin\n$")
  message(FATAL_ERROR "expected fastffn_cuda_plugin alone, found\n${exports}")
endif()
if(imports MATCHES " (_?Py[A-Z_]|cu[A-Z]|cuda[A-Z])")
  message(FATAL_ERROR "undefined symbols that users may not have:\n${imports}")
endif()
