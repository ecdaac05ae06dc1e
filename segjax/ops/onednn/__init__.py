"""oneDNN and kernels of our own for the CPU: `build` makes and loads them, `kernels` calls them."""
