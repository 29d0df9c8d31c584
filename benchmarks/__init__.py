"""Throughput of the kernels beside their peers and the machine's own limits: `make bench`."""
