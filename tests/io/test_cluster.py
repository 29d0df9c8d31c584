"""A cluster as the parameter store: of one node, and of three whose slots move."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import ExitStack

import pytest
from parameter_store_contract import ParameterStoreContract, keys_of, mark, put
from servers import cluster_of

from smlt.errors import ConfigError, StoreError
from smlt.io.stores import open_parameter_store

_numbers = itertools.count()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    with cluster_of(3, tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def name():
    """With a hash tag, as all our keys have."""
    return f"{{test{next(_numbers)}}}:"


def connect(servers, time_limit_s=10):
    url = f"redis://127.0.0.1:{servers[0].port}?cluster=true"
    return open_parameter_store(url, time_limit_s=time_limit_s)


class TestClusterStore(ParameterStoreContract):
    @pytest.fixture
    def opened(self, nodes):
        return lambda: connect(nodes)


def test_generations_lie_on_different_nodes(nodes):
    async def scenario():
        async with connect(nodes) as store:
            for i in range(12):
                await mark(store, f"{{spread{i}}}:")
                await put(store, f"{{spread{i}}}:")
            guards = [f"{{spread{i}}}:guard" for i in range(12)]
            assert await store.values(guards) == [b"1"] * 12
            await store.discard(guards[:3])
            assert await store.values(guards) == [None] * 3 + [b"1"] * 9

    asyncio.run(scenario())
    for node in nodes:
        with node.client() as admin:
            assert any(b"spread" in key for key in admin.keys("*"))


def test_a_slot_that_moves_is_followed(nodes, name):
    async def scenario(admins):
        async with connect(nodes) as store:
            await mark(store, name)
            await put(store, name, "before")
            slot = admins[0].execute_command("CLUSTER", "KEYSLOT", name)
            ids = [admin.execute_command("CLUSTER", "MYID").decode() for admin in admins]
            [source] = [
                number
                for number, admin in enumerate(admins)
                if admin.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)
            ]
            target = (source + 1) % 3
            set_slot = ("CLUSTER", "SETSLOT", slot)
            admins[target].execute_command(*set_slot, "IMPORTING", ids[source])
            admins[source].execute_command(*set_slot, "MIGRATING", ids[target])
            keys = admins[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            there = ("127.0.0.1", nodes[target].port, "", 0, 5000)
            admins[source].execute_command("MIGRATE", *there, "KEYS", *keys)
            late = asyncio.create_task(put(store, name, "meanwhile"))
            await asyncio.sleep(0.05)
            for admin in (admins[target], admins[source], *admins):
                admin.execute_command(*set_slot, "NODE", ids[target])
            await late
            assert await store.get(f"{name}before") == b"frame"
            await put(store, name, "after")
            assert await keys_of(store, f"{name}stream") == ["before", "meanwhile", "after"]

    with ExitStack() as stack:
        asyncio.run(scenario([stack.enter_context(node.client()) for node in nodes]))


def test_a_server_that_is_no_cluster_is_said_to_be_none(shared_server):
    async def scenario():
        store = connect([shared_server], time_limit_s=2)
        async with store:
            with pytest.raises(ConfigError, match="is no cluster"):
                await store.get("k")

    asyncio.run(scenario())


def test_a_node_without_the_option_says_what_to_do(nodes):
    async def scenario():
        url = f"redis://127.0.0.1:{nodes[0].port}"
        async with open_parameter_store(url, time_limit_s=2) as store:
            reads = [store.values([f"{{k{i}}}"]) for i in range(20)]
            found = await asyncio.gather(*reads, return_exceptions=True)
            [*errors] = [str(error) for error in found if isinstance(error, StoreError)]
            assert errors
            assert all("add ?cluster=true" in error for error in errors)

    asyncio.run(scenario())
