"""Kernels: compiled code for one kind of processor each. Everything works without them."""
