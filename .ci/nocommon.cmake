# Read by CMake at llama.cpp's project() call. llama-common is most of the build and nothing that Python loads; a normal
# variable is needed, because it shadows the cache entry that llama-cpp-python forces to ON.
set(LLAMA_BUILD_COMMON OFF)
