"""The names of dtypes and orders, for type checkers."""

from typing import Literal

Dtype = Literal["fp32", "fp16", "bf16"]
Order = Literal["fold", "tree", "fp64"]
