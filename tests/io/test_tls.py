"""The same store through TLS, and every way in which TLS can fail, in one sentence."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest
from parameter_store_contract import mark, put
from servers import Proxy, self_signed

from smlt.errors import ConfigError, StoreUnreachableError
from smlt.io.stores import open_parameter_store


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture
def tls(certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def connect(
    host: str, port: int, options: str = "", *, scheme: str = "rediss", limit_s: float = 10
):
    return open_parameter_store(f"{scheme}://{host}:{port}/0{options}", time_limit_s=limit_s)


def test_tls_keeps_to_the_rate_of_a_link(shared_server, name, tls):
    async def scenario():
        options = "?ssl_cert_reqs=none&link_mbps=8"
        async with (
            Proxy(shared_server.path, tls=tls) as proxy,
            connect("localhost", proxy.port, options) as store,
        ):
            await mark(store, name)
            frame = bytes(range(256)) * 4000
            for call in (lambda: put(store, name, "k", [frame]), lambda: store.get(f"{name}k")):
                begun = time.monotonic()
                got = await call()
                assert time.monotonic() - begun >= len(frame) / 8e6 - 0.01
            assert got == frame

    asyncio.run(scenario())


@pytest.mark.parametrize("checked", [True, False])
def test_frames_travel_through_tls(shared_server, name, tls, certificate, checked):
    async def scenario():
        trust = f"?ssl_ca_certs={certificate}" if checked else "?ssl_cert_reqs=none"
        async with (
            Proxy(shared_server.path, tls=tls) as proxy,
            connect("localhost", proxy.port, trust) as store,
        ):
            await mark(store, name)
            frame = bytes(range(256)) * 20_000
            calls = [put(store, name, str(i), [frame, b"tail"]) for i in range(5)]
            await asyncio.gather(*calls)
            found = await asyncio.gather(*(store.get(f"{name}{i}") for i in range(5)))
            assert found == [frame + b"tail"] * 5
            proxy.cut()
            assert await store.get(f"{name}1") == frame + b"tail"
            assert len(await store.read({f"{name}stream": "0"}, wait_s=1)) == 5

    asyncio.run(scenario())


def test_a_certificate_that_cannot_be_trusted_is_refused_at_once(shared_server, tls, certificate):
    async def scenario():
        async with Proxy(shared_server.path, tls=tls) as proxy:
            for host, options, words in [
                ("localhost", "", "self-signed certificate"),
                ("127.0.0.1", f"?ssl_ca_certs={certificate}", "not valid for '127.0.0.1'"),
                ("localhost", "?ssl_ca_certs=/no/such.pem", "cannot load the TLS certificate"),
            ]:
                async with connect(host, proxy.port, options) as store:
                    for call in (lambda s=store: s.get("k"), lambda s=store: s.values(["k"])):
                        with pytest.raises(ConfigError, match=words):
                            await call()

    asyncio.run(scenario())


def test_tls_on_one_side_only_is_an_error(shared_server, tls):
    async def scenario():
        async with (
            Proxy(shared_server.path) as proxy,
            connect("localhost", proxy.port, limit_s=1) as store,
        ):
            with pytest.raises((ConfigError, StoreUnreachableError)):
                await store.get("k")
        async with (
            Proxy(shared_server.path, tls=tls) as proxy,
            connect("localhost", proxy.port, scheme="redis", limit_s=1) as store,
        ):
            with pytest.raises(StoreUnreachableError, match="closed the connection"):
                await store.get("k")

    asyncio.run(scenario())
