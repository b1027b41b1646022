"""`moemesh bench kernels`: this machine's limits, and how near to them every kernel comes."""
