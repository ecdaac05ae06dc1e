"""CPU kernels by oneDNN and our own: `build` compiles and loads them, `kernels` calls them."""
