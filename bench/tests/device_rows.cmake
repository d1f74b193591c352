# bench/gpu/rows.txt is what fastffn-bench lists.
execute_process(COMMAND ${BENCH} --device cuda --suite all --list OUTPUT_VARIABLE listed RESULT_VARIABLE failed)
file(READ "${ROWS}" rows)
if(failed OR NOT listed STREQUAL rows)
  message(FATAL_ERROR "fastffn-bench --device cuda --suite all --list > ${ROWS}")
endif()
