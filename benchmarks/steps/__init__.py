"""The step loops of the persistent kernels, read and played in machine code."""
