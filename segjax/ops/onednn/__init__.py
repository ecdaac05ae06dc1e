"""CPU kernels, oneDNN's and our own: `build` compiles and loads them, `kernels` calls them."""
