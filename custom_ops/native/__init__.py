"""C++ shared by the kernels: our ABI header, vector types, maths, and the library's registry."""
