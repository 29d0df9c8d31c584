"""What Lambda and Valkey allow, as the documentation says (November 2026)."""

from smlt.config.values import Duration

CONCURRENCY_LIMIT = 1000
"""Functions at a time: what an AWS account has unless it asks for more."""
MEMORY_MB = (128, 10_240)
MB_PER_VCPU = 1769
"""So much memory buys one whole vCPU."""
EPHEMERAL_MB = (512, 10_240)
FUNCTION_S = (Duration(20), Duration(900))
"""Less leaves no time between start and hand-over; more Lambda does not give."""
WIRE_DTYPES = ("fp32", "bf16", "fp16")
LARGEST_SHARD_MB = 512
"""The largest value that Valkey stores under one key."""
