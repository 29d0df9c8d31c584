"""The ``torch.distributed`` backend: importing this module registers it under the name "smlt".

```python
import smlt.torch

torch.distributed.init_process_group(
    "smlt", init_method="smlt+redis://host:6379/0?job=resnet", rank=rank, world_size=world_size
)
```

The URL is the parameter store's with ``smlt+`` before it and ``?job=`` behind; ``shard_mb``,
``aggregators`` and ``lease_s`` may follow, as in ``smlt.Aggregator``. Objects that ranks send one
another are plain values, arrays and tensors, unless ``&pickle=true`` trusts all who can write to
the store.
"""

from __future__ import annotations

from torch import distributed
from torch.distributed.rendezvous import register_rendezvous_handler

from smlt.aggregation import torch_objects, torch_world
from smlt.aggregation.process_group import SmltProcessGroup, create

__all__ = ["SmltProcessGroup"]

distributed.Backend.register_backend("smlt", create, extended_api=True, devices=["cpu"])
for _scheme in torch_world.SCHEMES:
    register_rendezvous_handler(  # type: ignore[no-untyped-call]
        f"{torch_world.PREFIX}{_scheme}", torch_world.rendezvous
    )
torch_objects.exchange_plainly(
    lambda group: isinstance(group, SmltProcessGroup) and not group.trusts_pickle
)
