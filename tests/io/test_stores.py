"""From URLs to stores."""

from __future__ import annotations

import pytest

from smlt.errors import ConfigError
from smlt.io.directory import DirectoryStore
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.memory_parameters import MemoryParameterStore
from smlt.io.server_address import ServerAddress, server_urls
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.io.valkey import ValkeyStore


def test_each_scheme_has_its_store(tmp_path):
    assert isinstance(open_object_store("memory://x"), MemoryObjectStore)
    assert isinstance(open_object_store(tmp_path.as_uri()), DirectoryStore)
    for url, kind in [
        ("memory://x", MemoryParameterStore),
        ("redis://h:1/0", ValkeyStore),
        ("rediss://h:1/0", ValkeyStore),
        ("unix:///a.sock", ValkeyStore),
    ]:
        store = open_parameter_store(url, time_limit_s=1)
        assert isinstance(store, kind)
        assert store.url == url


@pytest.mark.parametrize("url", ["", "file:relative", "file://host/x", "memory://"])
def test_other_object_stores_are_refused_with_what_there_is(url):
    with pytest.raises(ConfigError, match="give s3://bucket/prefix, file:///abs"):
        open_object_store(url)


@pytest.mark.parametrize("url", ["", "http://x", "memory://"])
def test_other_parameter_stores_are_refused_with_what_there_is(url):
    with pytest.raises(ConfigError, match="give redis://host:6379/0"):
        open_parameter_store(url, time_limit_s=1)


def test_an_address_is_taken_apart():
    address = ServerAddress.parse("redis://us%40er:p%2Fw%3A%40@[::1]:7000/3")
    assert (address.host, address.port, address.db) == ("::1", 7000, 3)
    assert (address.username, address.password) == ("us@er", "p/w:@")
    assert address.masked == "redis://us%40er:***@[::1]:7000/3"
    assert "p/w" not in repr(address)


def test_the_last_server_s_options_are_those_of_all_that_have_none():
    assert server_urls("redis://a,unix:///b?db=1,redis://c:1/2?db=3") == [
        "redis://a?db=3",
        "unix:///b?db=1",
        "redis://c:1/2?db=3",
    ]
    assert server_urls("redis://a,redis://b") == ["redis://a", "redis://b"]


def test_one_wrong_server_among_several_is_named():
    with pytest.raises(ConfigError, match=r"^http://b is no server URL"):
        open_parameter_store("redis://a,http://b", time_limit_s=1)
    with pytest.raises(ConfigError, match="write each in full"):
        open_parameter_store("redis://a,,redis://b", time_limit_s=1)


def test_defaults_are_those_of_redis():
    address = ServerAddress.parse("redis://host")
    assert (address.port, address.db, address.username, address.password) == (6379, 0, "", "")
    assert address.tls is None
    assert ServerAddress.parse("unix:///a%20b.sock?db=2").path == "/a b.sock"
    assert ServerAddress.parse("unix:///a.sock?db=2").db == 2
    assert ServerAddress.parse("redis://:secret@host").masked == "redis://:***@host:6379/0"


def test_tls_options_are_those_of_redis_py():
    tls = ServerAddress.parse(
        "rediss://h?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem&ssl_check_hostname=false"
    ).tls
    assert (tls.cert_reqs, tls.ca_certs, tls.check_hostname) == ("none", "/ca.pem", False)
    assert ServerAddress.parse("rediss://h").tls.check_hostname


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://user:secret@",
        "redis://user:secret@host:port/0",
        "redis://user:secret@host/zero",
        "redis://user:secret@host/0?colour=red",
        "redis://user:secret@host/0?password=secret&x=1",
        "redis://user:secret@host/0?ssl_cert_reqs=none",
        "rediss://user:secret@host/0?ssl_cert_reqs=perhaps",
        "unix://user:secret@host/path",
        "unix://user:secret@",
        "http://user:secret@host",
        "redis://user:secret@host:1,other:2/0",
        "redis://user:secret@host,",
    ],
)
def test_a_wrong_address_is_refused_without_showing_the_password(url):
    with pytest.raises(ConfigError) as error:
        ServerAddress.parse(url)
    assert "secret" not in str(error.value)
