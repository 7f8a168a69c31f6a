"""CPU kernels compiled on the machine they run on, where it has a C++ compiler. Everything works without them."""
