# Turns on the warnings that this project's own code is free of; EMMET_WERROR makes them errors.
function(emmet_warnings target)
  set(cxx -Wall -Wextra $<$<BOOL:${EMMET_WERROR}>:-Werror>)
  set(cuda -Xcompiler=-Wall,-Wextra $<$<BOOL:${EMMET_WERROR}>:--Werror=all-warnings>)
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${cxx}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:${cuda}>")
endfunction()
