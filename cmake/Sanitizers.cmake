# Builds a target with the sanitizers of EMMET_SANITIZE, if any. Whatever they find ends the program.
function(emmet_sanitizers target)
  if(EMMET_SANITIZE)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${EMMET_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
    target_link_options(${target} PRIVATE -fsanitize=${EMMET_SANITIZE})
  endif()
endfunction()
