# llama.cpp for tests, built quickly rather than to run quickly: about a minute on two cores instead of six.
# Read after each project(): CMAKE_ARGS="-DCMAKE_PROJECT_INCLUDE=<the whole path of this file>"

set(LLAVA_BUILD OFF)        # pictures and sound
set(LLAMA_BUILD_COMMON OFF) # what llama.cpp's own programs share
set(GGML_NATIVE OFF)
set(GGML_OPENMP OFF)
set(GGML_LLAMAFILE OFF)
set(GGML_CPU_REPACK OFF)
set(LLAMA_ALL_WARNINGS OFF)
set(CMAKE_C_FLAGS_RELEASE "-O1 -DNDEBUG") # the kernels
set(CMAKE_CXX_FLAGS_RELEASE "-O0 -DNDEBUG")
