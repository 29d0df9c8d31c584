"""The torch.distributed backend: the same scripts on gloo and on smlt."""

from __future__ import annotations

import contextlib
import json
import math
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from smlt.aggregation.background import EventLoopThread
from tests.io.s3_servers import CREDENTIALS, S3Server
from tests.io.servers import Proxy, ValkeyServer, cluster_of, self_signed

# Eight worlds of processes that import torch: more than a minute.
pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).with_name("programs.py")


def run(backend, url, world_size, programs):
    """Return by rank what the programs returned."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAMS.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAMS, backend, url, str(rank), str(world_size), *programs],
            env=environment,
            cwd=PROGRAMS.parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        # gloo's own threads sometimes end a process by an abort, when all is done and said.
        assert process.returncode == 0 or (backend, process.returncode) == ("gloo", -6), errors
    return [json.loads(output.strip().rpartition("\n")[2]) for output, _ in outputs]


def assert_close(left, right, where):
    """Compare nested lists, numbers up to the rounding of another order of addition."""
    if isinstance(left, list) and isinstance(right, list):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_close(*pair, f"{where}[{index}]")
    elif isinstance(left, float) and isinstance(right, float):
        assert math.isclose(left, right, rel_tol=1e-3, abs_tol=1e-4), f"{where}: {left} {right}"
    else:
        assert left == right, where


def test_a_script_gives_the_same_on_gloo_and_on_smlt(tmp_path, valkey, job):
    programs = [
        *("ddp", "ddp_unused_parameters", "ddp_static_graph_and_bucket_views", "ddp_compressed"),
        *("join_uneven_inputs", "zero_redundancy", "groups", "objects", "messages"),
        *("reductions", "movements", "reduce_scatters", "overlapping", "futures"),
        *("ddp_accumulates", "zero_redundancy_of_views", "join_with_zero_redundancy"),
        "fully_sharded",
    ]
    gloo = run("gloo", f"file://{tmp_path}/rendezvous", 3, programs)
    smlt = run("smlt", f"smlt+{valkey.url}?job={job}", 3, [*programs, "averages"])

    assert all(all(results["averages"]) for results in smlt)
    for program in programs:
        for rank in range(3):
            assert_close(gloo[rank][program], smlt[rank][program], f"{program} on rank {rank}")


@contextlib.contextmanager
def store_of(kind, folder, valkey):
    """The URL of a parameter store."""
    tcp = f"redis://127.0.0.1:{valkey.port}/0"
    with contextlib.ExitStack() as stack:
        if kind == "several servers":
            second = stack.enter_context(ValkeyServer(folder / "second.sock"))
            yield f"{tcp},{second.url}"
        elif kind == "several over TLS":
            thread = stack.enter_context(EventLoopThread("proxies"))
            certificate = self_signed(folder / "certificate.pem")
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(certificate)
            proxies = [Proxy(valkey.path, tls=tls) for _ in range(2)]
            for proxy in proxies:
                thread.call(proxy.__aenter__())
                stack.callback(lambda proxy=proxy: thread.call(proxy.__aexit__()))
            urls = [f"rediss://localhost:{proxy.port}/{db}" for db, proxy in enumerate(proxies)]
            yield f"{','.join(urls)}?ssl_ca_certs={certificate}"
        elif kind == "cluster":
            nodes = stack.enter_context(cluster_of(3, folder))
            yield f"redis://127.0.0.1:{nodes[1].port}?cluster=true"
        elif kind == "bucket":
            bucket = stack.enter_context(S3Server()).bucket("torch")
            yield bucket.replace("?", "/some/prefix?")
        else:
            yield tcp


ON_EVERY_STORE = ("ddp", "objects", "groups", "messages", "reduce_scatters")


@pytest.fixture(scope="module")
def gloo_on_three(tmp_path_factory):
    rendezvous = tmp_path_factory.mktemp("gloo") / "rendezvous"
    return run("gloo", f"file://{rendezvous}", 3, ON_EVERY_STORE)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "kind", ["tcp", "several servers", "several over TLS", "cluster", "bucket"]
)
def test_it_runs_on_every_store(tmp_path, valkey, job, kind, monkeypatch, gloo_on_three):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with store_of(kind, tmp_path, valkey) as url:
        url = f"smlt+{url}{'&' if '?' in url else '?'}job={job}"
        smlt = run("smlt", url, 3, ON_EVERY_STORE)
    for program in ON_EVERY_STORE:
        for rank in range(3):
            wanted = gloo_on_three[rank][program]
            assert_close(wanted, smlt[rank][program], f"{program} on rank {rank}")


def test_accelerate_and_fabric_run_on_it(tmp_path, valkey, job):
    programs = ["accelerated", "fabricated"]
    gloo = run("gloo", f"file://{tmp_path}/rendezvous", 2, programs)
    smlt = run("smlt", f"smlt+redis://127.0.0.1:{valkey.port}/0?job={job}", 2, programs)

    for program in programs:
        for rank in range(2):
            assert smlt[rank][program][0] == 2  # processes, as the package counts them
            assert_close(gloo[rank][program], smlt[rank][program], f"{program} on rank {rank}")


def script(tmp_path, body):
    path = tmp_path / "script.py"
    path.write_text(f"import torch\nimport torch.distributed as dist\nimport smlt.torch\n{body}")
    return path


def start(path, *arguments):
    return subprocess.Popen(
        [sys.executable, path, *map(str, arguments)],
        cwd=PROGRAMS.parents[2],
        env=os.environ | {"PYTHONPATH": str(PROGRAMS.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def on_two_ranks(path, url):
    """Return what each rank of a script prints, and its errors."""
    processes = [start(path, url, rank) for rank in range(2)]
    try:
        return [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()


INIT = """
import sys
from datetime import timedelta
url, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group(
    "smlt", init_method=url, rank=rank, world_size=2, timeout=timedelta(seconds=20)
)
"""


def test_a_rank_that_dies_fails_the_others_under_ddp(tmp_path, valkey, job):
    path = script(
        tmp_path,
        INIT
        + """
import os
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
for step in range(100):
    if rank == 1 and step == 3:
        os._exit(1)
    net(torch.ones(2, 4)).sum().backward()
""",
    )
    url = f"smlt+{valkey.url}?job={job}&lease_s=3"
    processes = [start(path, url, rank) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode not in (0, None)
    assert "rank 1 of job" in errors[0]
    assert "died" in errors[0]


def test_a_script_that_does_not_destroy_its_group_ends_and_frees_the_name(tmp_path, valkey, job):
    path = script(tmp_path, INIT + "t = torch.ones(3); dist.all_reduce(t); print(t.tolist())")
    for _ in range(2):
        processes = [start(path, f"smlt+{valkey.url}?job={job}", rank) for rank in range(2)]
        try:
            outputs = [process.communicate(timeout=60) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (output, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors
            assert output == "[2.0, 2.0, 2.0]\n"


MISTAKES = (
    INIT
    + """
for call in (
    lambda: dist.broadcast(torch.ones(1), src=7),
    lambda: dist.send(torch.ones(1), dst=7),
    lambda: dist.recv(torch.ones(1), src=7),
    lambda: dist.all_reduce(torch.tensor([True]), op=dist.ReduceOp.AVG),
    lambda: dist.all_reduce(torch.ones(3).to_sparse()),
    lambda: dist.reduce(torch.tensor([1j]), 0, op=dist.ReduceOp.PRODUCT),
    lambda: dist.reduce_scatter(torch.tensor([1j]), [torch.tensor([1j])] * 2, op=dist.ReduceOp.MAX),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
dist.barrier()
try:
    dist.all_reduce(torch.ones(3 + rank))
except Exception as error:
    print(error)
"""
)


def test_mistakes_of_the_user_get_a_sentence_each(tmp_path, valkey, job):
    """All but the last before anything is sent, so that the group goes on."""
    path = script(tmp_path, MISTAKES)
    outputs = on_two_ranks(path, f"smlt+{valkey.url}?job={job}")
    for output, errors in outputs:
        root, receiver, sender, mean, sparse, product, most, sizes = output.strip().split("\n")
        assert root == "UserError root 7 is outside a world of 2", errors
        assert receiver == "UserError receiver 7 is outside a world of 2"
        assert sender == "UserError sender 7 is outside a world of 2"
        assert mean.startswith("UserError truth values have no average")
        assert sparse.startswith("UserError the smlt backend has no torch.sparse_coo tensors")
        assert product.startswith("UserError complex numbers, sent as pairs, have no PRODUCT")
        assert most.startswith("UserError complex numbers, sent as pairs, have no MAX")
        assert sizes.startswith("ranks do different things: rank ")
        assert "all_reduce sum of 3 fp32" in sizes


MISFITS = (
    INIT
    + """
one, two, three = (torch.ones(n) for n in (1, 2, 3))
whole = torch.ones(1, dtype=torch.int32)
for call in (
    lambda: dist.all_gather([one], one),
    lambda: dist.all_gather([one, two], one),
    lambda: dist.all_gather_into_tensor(three, one),
    lambda: dist.all_gather_into_tensor(torch.ones(2, dtype=torch.int32), one),
    lambda: dist.reduce_scatter(one, [one]),
    lambda: dist.reduce_scatter(one, [two, two]),
    lambda: dist.reduce_scatter_tensor(two, three),
    lambda: dist.reduce_scatter_tensor(whole, two),
    lambda: dist.all_to_all([one], [one]),
    lambda: dist.all_to_all([one, one], [two, two]),
    lambda: dist.all_to_all_single(three, three),
    lambda: dist.all_to_all_single(two, two, [1, 2], [1, 1]),
    lambda: dist.all_to_all_single(two, two, [1, 1, 0], [1, 1]),
    lambda: dist.gather(one, [one, two], dst=rank),
    lambda: dist.scatter(one, [one], src=rank),
):
    try:
        call()
        print("was not refused")
    except Exception as error:
        print(type(error).__name__, error)
dist.all_reduce(one)
print(one.item())
"""
)


def test_tensors_that_do_not_fit_are_refused_and_the_group_goes_on(tmp_path, valkey, job):
    path = script(tmp_path, MISFITS)
    outputs = on_two_ranks(path, f"smlt+{valkey.url}?job={job}")
    for output, errors in outputs:
        *refusals, total = output.strip().split("\n")
        assert total == "2.0", errors
        assert len(refusals) == 15
        assert all(refusal.startswith("UserError ") for refusal in refusals), refusals
        assert refusals[2] == "UserError all_gather: 3 float32 do not match 2 times 1 float32"


def test_the_store_counts_and_waits_across_processes(tmp_path, valkey, job):
    path = script(
        tmp_path,
        INIT
        + """
store = dist.distributed_c10d._get_default_store()
total = 0
for _ in range(20):
    total = store.add("count", 1)
won = store.compare_set("leader", "", str(rank)).decode()
store.set(f"done{rank}", str(total))
store.wait([f"done{1 - rank}"])
totals = sorted(int(store.get(f"done{r}")) for r in range(2))
assert totals[1] == 40, totals
assert store.check(["leader", "done0", "done1"]) and not store.check(["never"])
dist.barrier()  # or the other rank may still be looking for what is deleted
assert store.delete_key(f"done{rank}")
try:
    store.wait(["never"], timedelta(seconds=0.2))
except dist.DistStoreError as error:
    print(won, "waited" if "never" in str(error) else error)
dist.destroy_process_group()
print("ended")
""",
    )
    outputs = on_two_ranks(path, f"smlt+{valkey.url}?job={job}")
    assert outputs[0][0] == outputs[1][0], outputs
    assert outputs[0][0].endswith("waited\nended\n"), outputs


CLASS = (
    INIT
    + """
class Own:
    def __reduce__(self):
        return print, ("run by the sender",)
every = [None] * 2
try:
    dist.all_gather_object(every, Own())
except Exception as error:
    print(type(error).__name__, error)
"""
)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("", "UserError a __main__.Own cannot be sent"),
        ("&pickle=true", "run by the sender"),
    ],
)
def test_a_sender_cannot_choose_what_receivers_run_unless_they_say_so(
    tmp_path, valkey, job, option, said
):
    path = script(tmp_path, CLASS)
    outputs = on_two_ranks(path, f"smlt+{valkey.url}?job={job}{option}")
    for output, errors in outputs:
        assert output.startswith(said), errors
        assert ("run by the sender" in output) == bool(option)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            "'smlt', init_method='smlt+redis://user:secret@h/0', rank=0, world_size=1",
            "init_method smlt+redis:***h/0 lacks job",
        ),
        (
            "'smlt', init_method='smlt+redis://h/0?job=a&shard_mb=x', rank=0, world_size=1",
            "shard_mb=x: no number",
        ),
        (
            "'smlt', init_method='smlt+redis://h/0?job=a&aggregators=1.5', rank=0, world_size=2",
            "aggregators=1.5: no whole number",
        ),
        (
            "'smlt', init_method='smlt+redis://h/0?job=a&shard_mb=nan', rank=0, world_size=1",
            "shard_mb=nan is no number above 0",
        ),
        (
            "'smlt', init_method='smlt+redis://h/0?job=a&pickle=1', rank=0, world_size=1",
            "pickle=1: say true or false",
        ),
        (
            "'smlt', init_method='file:///tmp/none', rank=0, world_size=1",
            "needs its own rendezvous",
        ),
    ],
)
def test_a_wrong_initialisation_is_refused_in_a_sentence(tmp_path, call, sentence):
    call = call.replace("/tmp/none", str(tmp_path / "file"))
    process = start(script(tmp_path, f"dist.init_process_group({call})"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert sentence in errors.replace(call, "")
    assert "secret" not in errors.replace(call, "")
