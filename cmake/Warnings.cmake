# Turns on the warnings that this project's own code is free of; EMMET_WERROR makes them errors.
function(emmet_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${EMMET_WERROR}>:-Werror>)
endfunction()
