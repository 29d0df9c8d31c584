"""What a user's torch.distributed script does, on whatever backend: run as a process per rank.

The backends differ in one line and an import. Every program returns what is compared.
"""

import json
import os
import sys
import tempfile
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

torch.set_num_threads(1)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.Linear(64, 3),
    )


def batches(rank, count, size=8):
    generator = torch.Generator().manual_seed(rank)
    for _ in range(count):
        yield (
            torch.randn(size, 20, generator=generator),
            torch.randint(0, 3, (size,), generator=generator),
        )


def train(net, optimizer, rank, steps=6):
    losses = []
    for inputs, targets in batches(rank, steps):
        loss = nn.functional.cross_entropy(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sums(net):
    return [parameter.double().sum().item() for parameter in net.parameters()]


def ddp(rank, world_size):
    net = nn.parallel.DistributedDataParallel(model(), bucket_cap_mb=0.01)
    return train(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rank), sums(net)


class Branches(nn.Module):
    """Uses one of its layers only, a different one on each rank and step."""

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(20, 3) for _ in range(3)])
        self.turn = rank

    def forward(self, inputs):
        self.turn += 1
        return self.layers[self.turn % 2](inputs)


def ddp_unused_parameters(rank, world_size):
    net = nn.parallel.DistributedDataParallel(Branches(rank), find_unused_parameters=True)
    return train(net, torch.optim.AdamW(net.parameters()), rank), sums(net)


def ddp_static_graph_and_bucket_views(rank, world_size):
    net = nn.parallel.DistributedDataParallel(
        model(), static_graph=True, gradient_as_bucket_view=True
    )
    return train(net, torch.optim.Adam(net.parameters()), rank), sums(net)


def ddp_compressed(rank, world_size):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    net = nn.parallel.DistributedDataParallel(model())
    net.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return train(net, torch.optim.SGD(net.parameters(), lr=0.1), rank), sums(net)


def join_uneven_inputs(rank, world_size):
    net = nn.parallel.DistributedDataParallel(nn.Linear(20, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with net.join():
        losses = train(net, optimizer, rank, steps=3 + 2 * rank)
    return losses, sums(net)


def zero_redundancy(rank, world_size):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net = nn.parallel.DistributedDataParallel(model())
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01)
    losses = train(net, optimizer, rank)
    optimizer.consolidate_state_dict(to=0)
    return losses, sums(net)


DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def values(rank, dtype, size=6):
    return ((torch.arange(size) + 1 + 2 * rank) % 5).to(dtype)


def reductions(rank, world_size):
    results = []
    for dtype in DTYPES:
        for op in ("SUM", "MIN", "MAX", "PRODUCT"):
            if dtype == torch.bool and op in ("SUM", "PRODUCT"):
                continue
            tensor = values(rank, dtype)
            dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
            results.append(tensor.double().tolist())
    for op in ("BAND", "BOR", "BXOR"):
        tensor = values(rank, torch.int32)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, op))
        results.append(tensor.tolist())
    big = torch.linspace(0, 1 + rank, 200_000, dtype=torch.float64)
    dist.all_reduce(big)
    strided = torch.full((50, 40), rank + 1.0).t()
    dist.all_reduce(strided)
    tensor = values(rank, torch.float32)
    dist.reduce(tensor, dst=1)
    empty = torch.empty(0)
    dist.all_reduce(empty)
    return results, big.sum().item(), strided.sum().item(), tensor.tolist() if rank == 1 else None


def movements(rank, world_size):
    every = list(range(world_size))
    results = []
    for dtype in DTYPES:
        own = values(rank, dtype)
        copy = own.clone()
        dist.broadcast(copy, src=1)
        gathered = [torch.empty_like(own) for _ in every]
        dist.all_gather(gathered, own)
        pairs = [[torch.empty_like(own), torch.empty_like(own[:2])] for _ in every]
        dist.all_gather_coalesced(pairs, [own, own[:2]])
        gathered += [tensor for pair in pairs for tensor in pair]
        stacked = torch.empty(world_size * 6, dtype=dtype)
        dist.all_gather_into_tensor(stacked, own)
        at_root = [torch.empty_like(own) for _ in every] if rank == 0 else None
        dist.gather(own, at_root, dst=0)
        scattered = torch.empty_like(own)
        dist.scatter(scattered, [values(r + 3, dtype) for r in every] if rank == 1 else None, src=1)
        results.append([t.double().tolist() for t in (copy, *gathered, stacked, scattered)])
    incoming = [torch.empty(2) for _ in every]
    dist.all_to_all(incoming, [torch.full((2,), 10.0 * rank + r) for r in every])
    splits = [1 + (rank + r) % 2 for r in every]
    uneven = torch.empty(sum(splits), 3)
    dist.all_to_all_single(uneven, torch.full((sum(splits), 3), 1.0 * rank), splits, splits)
    source = torch.arange(world_size * 2.0) + 100 * rank
    turned = torch.empty_like(source)
    dist.all_to_all_single(turned, source)
    dist.barrier()
    return results, [t.tolist() for t in incoming], turned.tolist(), uneven.tolist()


def reduce_scatters(rank, world_size):
    results = []
    for dtype in (torch.float32, torch.float64, torch.int64):
        out = torch.empty(4, dtype=dtype)
        dist.reduce_scatter(out, [values(rank + r, dtype, 4) for r in range(world_size)])
        flat = torch.empty(4, dtype=dtype)
        dist.reduce_scatter_tensor(flat, values(rank, dtype, 4 * world_size))
        results.append([out.tolist(), flat.tolist()])
    return results


def messages(rank, world_size):
    following, preceding = (rank + 1) % world_size, (rank - 1) % world_size
    received = torch.empty(3)
    works = [dist.isend(torch.full((3,), float(rank)), following), dist.irecv(received, preceding)]
    for work in works:
        work.wait()
    many = torch.empty(2)
    if rank == 0:
        seen = sorted((dist.recv(many, tag=7), many[0].item()) for _ in range(world_size - 1))
    else:
        seen = dist.send(torch.full((2,), float(rank)), 0, tag=7)
    if rank == 0:
        places = [torch.empty(1) for _ in range(1, world_size)]
        for work in [dist.irecv(place, tag=8) for place in places]:
            work.wait()
        seen = seen, sorted(place.item() for place in places)
    else:
        dist.send(torch.tensor([float(rank)]), 0, tag=8)
    operations = [
        dist.P2POp(dist.isend, torch.full((3,), rank * 2.0), following),
        dist.P2POp(dist.irecv, received, preceding),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received.tolist(), seen


def objects(rank, world_size):
    gathered = [None] * world_size
    dist.all_gather_object(gathered, {"rank": rank, "list": [1, "two", 3.0, None, (4,)]})
    shared = [{"of": rank}, "text"]
    dist.broadcast_object_list(shared, src=1)
    at_root = [None] * world_size if rank == 0 else None
    dist.gather_object({"rank": rank}, at_root, dst=0)
    mine = [None]
    sent = [{"for": r, "set": {r}} for r in range(world_size)] if rank == 0 else None
    dist.scatter_object_list(mine, sent, src=0)
    tensors = [None] * world_size
    dist.all_gather_object(tensors, {"t": torch.full((3,), rank + 0.5), "n": np.arange(rank)})
    tensors = [(each["t"].tolist(), each["n"].tolist()) for each in tensors]
    message = [None, None]
    if rank == 0:
        dist.send_object_list([{"a": 1}, b"bytes".hex()], dst=1)
    elif rank == 1:
        dist.recv_object_list(message, src=0)
    return gathered, shared, at_root, mine[0]["for"], sorted(mine[0]["set"]), tensors, message


def groups(rank, world_size):
    results = []
    for members in ([0, 1], [1, 2], [0, 2], [0, 1]):
        group = dist.new_group(members)
        if rank in members:
            tensor = torch.full((5,), rank + 1.0)
            dist.all_reduce(tensor, group=group)
            dist.broadcast(tensor, src=members[1], group=group)
            results.append(tensor.tolist())
            dist.destroy_process_group(group)
    dist.barrier()
    return results


def averages(rank, world_size):
    """What gloo does not have: compared with what it comes from."""
    results = []
    for dtype in DTYPES[:4]:
        mean = values(rank, dtype)
        dist.all_reduce(mean, op=dist.ReduceOp.AVG)
        every = torch.stack([values(r, torch.float64) for r in range(world_size)])
        results.append(bool(torch.allclose(mean.double(), every.mean(0), rtol=1e-2)))
        piece = torch.empty(2, dtype=dtype)
        dist.reduce_scatter_tensor(
            piece, torch.full((2 * world_size,), rank).to(dtype), op=dist.ReduceOp.AVG
        )
        results.append(piece.tolist() == [(world_size - 1) / 2] * 2)
    return results


def futures(rank, world_size):
    """Work that is waited for by its future, and what is chained behind it."""
    tensor = torch.full((5,), rank + 1.0)
    work = dist.all_reduce(tensor, async_op=True)
    chained = work.get_future().then(lambda future: future.value()[0] * 10)
    doubled = chained.wait().tolist()
    pieces = [torch.full((3,), rank * 1.0), torch.full((4,), rank + 0.5)]
    with dist.distributed_c10d._coalescing_manager(async_ops=True) as together:
        for piece in pieces:
            dist.all_reduce(piece)
    together.wait()
    late = dist.broadcast(torch.ones(2), src=0, async_op=True)
    late.wait()
    return doubled, tensor.tolist(), [p.tolist() for p in pieces], late.is_completed()


def ddp_accumulates(rank, world_size):
    """Gradients of several batches in a step, synchronised in the last."""
    net = nn.parallel.DistributedDataParallel(model(), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for number, (inputs, targets) in enumerate(batches(rank, 6)):
        loss = nn.functional.cross_entropy(net(inputs), targets)
        if number % 3 < 2:
            with net.no_sync():
                loss.backward()
            continue
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sums(net)


def zero_redundancy_of_views(rank, world_size):
    """ZeRO-1 with flat parameters and SGD with momentum, whose state each rank keeps a part of."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net = nn.parallel.DistributedDataParallel(model(), static_graph=True)
    optimizer = ZeroRedundancyOptimizer(
        net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9, parameters_as_bucket_view=True
    )
    return train(net, optimizer, rank), sums(net), len(optimizer.optim.state) < 10


def join_with_zero_redundancy(rank, world_size):
    from torch.distributed.algorithms.join import Join
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net = nn.parallel.DistributedDataParallel(nn.Linear(20, 3))
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.Adam, lr=0.01)
    with Join([net, optimizer]):
        train(net, optimizer, rank, steps=2 + rank)
    return sums(net)


def fully_sharded(rank, world_size):
    """FSDP frees parameters between their uses, by resizing what the collectives have filled."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    net = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    return train(net, torch.optim.SGD(net.parameters(), lr=0.1), rank)


def overlapping(rank, world_size):
    tensors = [torch.full((1000 * (i + 1),), float(i * (rank + 1))) for i in range(10)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    firsts = []
    for work, tensor in zip(works, tensors, strict=True):
        work.wait()
        firsts.append((tensor[0].item(), tensor.std().item()))
    return firsts


def shared_folder():
    """A folder that all ranks know, of the first one's choice."""
    chosen = [tempfile.mkdtemp()] if dist.get_rank() == 0 else [None]
    dist.broadcast_object_list(chosen, src=0)
    return chosen[0]


def accelerated(rank, world_size):
    """Accumulation, clipping, bf16, gathering, objects, saving and going on from what was saved."""
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list, gather_object, set_seed

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # wanted, and never used
    set_seed(3)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
    data = torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*batches(7, 8), strict=True)))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    net, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)
    folder, seen, losses = shared_folder(), [], []

    def epoch():
        for inputs, targets in loader:
            with accelerator.accumulate(net):
                with accelerator.autocast():
                    loss = nn.functional.cross_entropy(net(inputs), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            seen.append(accelerator.gather_for_metrics(targets).tolist())
            losses.append(accelerator.reduce(loss.detach(), "mean").item())

    epoch()
    accelerator.save_state(folder)
    epoch()
    after, first = sums(net), len(losses) // 2
    accelerator.load_state(folder)
    epoch()
    again = [abs(a - b) < 1e-6 for a, b in zip(after, sums(net), strict=True)]
    padded = accelerator.pad_across_processes(torch.ones(1 + rank), dim=0).tolist()
    said = gather_object([f"rank {rank}"]), broadcast_object_list([rank, "x"], 1)
    accelerator.wait_for_everyone()
    return accelerator.num_processes, losses[: 2 * first], again, seen, padded, said, after


def fabricated(rank, world_size):
    """Accumulation, bf16, gathering, saving and loading with Fabric's own calls."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    environment = LightningEnvironment()
    environment.set_world_size(world_size)
    environment.set_global_rank(rank)
    strategy = DDPStrategy(
        cluster_environment=environment, process_group_backend=dist.get_backend()
    )
    fabric = Fabric(
        accelerator="cpu", devices=world_size, strategy=strategy, precision="bf16-mixed"
    )
    fabric.launch()
    net = model()
    net, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    data = torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*batches(7, 8), strict=True)))
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(data, batch_size=4))
    losses = []
    for number, (inputs, targets) in enumerate(loader):
        accumulates = number % 2 == 0
        with fabric.no_backward_sync(net, enabled=accumulates):
            loss = nn.functional.cross_entropy(net(inputs), targets)
            fabric.backward(loss)
        if not accumulates:
            fabric.clip_gradients(net, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(fabric.all_gather(loss.detach()).flatten().tolist())
    path = os.path.join(fabric.broadcast(shared_folder()), "state.ckpt")
    fabric.save(path, {"model": net, "optimizer": optimizer, "losses": len(losses)})
    held = sums(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    rest = fabric.load(path, {"model": net, "optimizer": optimizer})
    fabric.barrier()
    return fabric.world_size, losses, held, sums(net) == held, rest["losses"]


def main():
    backend, url, rank, world_size, *programs = sys.argv[1:]
    rank, world_size = int(rank), int(world_size)
    if backend == "smlt":
        import smlt.torch  # noqa: F401
    dist.init_process_group(
        backend,
        init_method=url,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=30),
    )
    results = {}
    for program in programs:
        results[program] = globals()[program](rank, world_size)
    print(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
