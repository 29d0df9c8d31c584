"""The NumPy twin of each kernel: what the tests hold the kernels to, and a fallback on request."""
