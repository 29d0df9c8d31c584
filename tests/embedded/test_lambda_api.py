"""The control API through boto3: functions, versions, code, settings, and refusals."""

import urllib.error
import urllib.request

import pytest
from botocore.exceptions import ClientError

from embedded.conftest import ROLE, zipped


def refusal(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response
    return error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]


def test_create_function_shows_its_configuration(client):
    name = client.create(memory=1769, Timeout=30, EphemeralStorage={"Size": 1024})
    shown = client.api.get_function(FunctionName=name)["Configuration"]
    assert (shown["FunctionName"], shown["Handler"], shown["Role"]) == (name, "app.handler", ROLE)
    assert (shown["MemorySize"], shown["Timeout"]) == (1769, 30)
    assert shown["EphemeralStorage"] == {"Size": 1024}
    assert (shown["State"], shown["LastUpdateStatus"]) == ("Active", "Successful")
    client.api.get_waiter("function_active_v2").wait(FunctionName=name)


def test_create_function_twice_is_a_conflict(client, echo):
    with pytest.raises(ClientError, match="ResourceConflictException"):
        client.create(name=echo)


def test_unknown_function_is_not_found(client):
    for call in (client.api.get_function, client.api.delete_function, client.api.invoke):
        assert refusal(call, FunctionName="nobody") == ("ResourceNotFoundException", 404)


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 127},
        {"memory": 10_241},
        {"Timeout": 901},
        {"EphemeralStorage": {"Size": 511}},
        {"variables": {"AWS_REGION": "mars-1"}},
        {"variables": {"BIG": "x" * 4096}},
    ],
)
def test_create_function_outside_a_limit_is_refused(client, options):
    with pytest.raises(ClientError, match=r"InvalidParameterValueException|ValidationException"):
        client.create(**options)


def test_code_that_is_no_zip_is_refused(client):
    name = client.create()
    call = client.api.update_function_code
    assert refusal(call, FunctionName=name, ZipFile=b"no zip") == (
        "InvalidParameterValueException",
        400,
    )


def test_code_from_s3_is_refused_with_a_sentence(client):
    name = client.create()
    with pytest.raises(ClientError, match="takes code as ZipFile only"):
        client.api.update_function_code(FunctionName=name, S3Bucket="b" * 5, S3Key="k")


@pytest.mark.parametrize("entry", ["../escape.py", "/escape.py", "a/../../escape.py"])
def test_zip_entry_outside_the_package_is_refused(client, cloud, entry):
    with pytest.raises(ClientError, match="outside the package"):
        client.create({"app.py": "", entry: "boo"})


def test_update_configuration_retires_warm_environments(client):
    name = client.create(memory=256)
    before = client.invoke(name)["result"]
    client.api.update_function_configuration(
        FunctionName=name, MemorySize=512, Environment={"Variables": {"A": "1"}}
    )
    after = client.invoke(name)["result"]
    assert (before["memory"], after["memory"]) == ("256", "512")
    assert after["calls"] == 1
    assert client.invoke(name, {"do": "environ"})["result"]["A"] == "1"


def test_update_code_takes_effect_at_the_next_invocation(client):
    name = client.create({"app.py": "def handler(e, c): return 'old'"})
    assert client.invoke(name)["result"] == "old"
    code = zipped({"app.py": "def handler(e, c): return 'new'"})
    client.api.update_function_code(FunctionName=name, ZipFile=code)
    assert client.invoke(name)["result"] == "new"


def test_update_with_an_old_revision_is_refused(client):
    name = client.create()
    revision = client.api.get_function_configuration(FunctionName=name)["RevisionId"]
    update = client.api.update_function_configuration
    update(FunctionName=name, Timeout=5, RevisionId=revision)
    assert refusal(update, FunctionName=name, Timeout=6, RevisionId=revision) == (
        "PreconditionFailedException",
        412,
    )


def test_published_version_stays_what_it_was(client):
    name = client.create(memory=256)
    first = client.api.publish_version(FunctionName=name)
    assert first["Version"] == "1"
    assert first["FunctionArn"].endswith(f":{name}:1")
    assert client.api.publish_version(FunctionName=name)["Version"] == "1"
    warm = client.invoke(name, Qualifier="1")["result"]["pid"]
    client.api.update_function_configuration(FunctionName=name, MemorySize=300)
    assert client.api.publish_version(FunctionName=name)["Version"] == "2"
    again = client.invoke(name, Qualifier="1")["result"]
    assert (again["memory"], again["pid"]) == ("256", warm)
    assert client.invoke(name, Qualifier="2")["result"]["memory"] == "300"
    versions = client.api.list_versions_by_function(FunctionName=name)["Versions"]
    assert [version["Version"] for version in versions] == ["$LATEST", "1", "2"]


def test_list_functions_pages_through_all(client):
    names = {client.create() for _ in range(3)}
    pages = client.api.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2})
    listed = [function["FunctionName"] for page in pages for function in page["Functions"]]
    assert names <= set(listed)
    assert len(listed) == len(set(listed))


def test_delete_function_ends_its_environments(client):
    name = client.create()
    client.invoke(name)
    client.api.delete_function(FunctionName=name)
    assert client.environments(name) == []
    assert refusal(client.api.invoke, FunctionName=name)[0] == "ResourceNotFoundException"


def test_event_invoke_config_belongs_to_a_qualifier(client):
    name = client.create()
    client.api.publish_version(FunctionName=name)
    put, get = (
        client.api.put_function_event_invoke_config,
        client.api.get_function_event_invoke_config,
    )
    put(FunctionName=name, Qualifier="1", MaximumRetryAttempts=0, MaximumEventAgeInSeconds=60)
    shown = get(FunctionName=name, Qualifier="1")
    assert (shown["MaximumRetryAttempts"], shown["MaximumEventAgeInSeconds"]) == (0, 60)
    assert refusal(get, FunctionName=name)[0] == "ResourceNotFoundException"
    client.api.update_function_event_invoke_config(
        FunctionName=name, Qualifier="1", MaximumRetryAttempts=1
    )
    shown = get(FunctionName=name, Qualifier="1")
    assert (shown["MaximumRetryAttempts"], shown["MaximumEventAgeInSeconds"]) == (1, 60)


def test_account_settings_show_what_is_unreserved(client):
    name = client.create()
    client.api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=4)
    limit = client.api.get_account_settings()["AccountLimit"]
    assert limit["ConcurrentExecutions"] == 30
    assert limit["UnreservedConcurrentExecutions"] == 26
    client.api.delete_function_concurrency(FunctionName=name)


def test_reservation_must_leave_some_to_others(client):
    name = client.create()
    call = client.api.put_function_concurrency
    assert (
        refusal(call, FunctionName=name, ReservedConcurrentExecutions=28)[0]
        == "InvalidParameterValueException"
    )


def test_unknown_call_is_refused_with_its_name(client):
    with pytest.raises(ClientError, match="/layers is no call that the embedded cloud knows"):
        client.api.list_layers()


@pytest.mark.parametrize(
    "header",
    [("Origin", "https://example.com"), ("Host", "example.com"), ("Sec-Fetch-Mode", "cors")],
)
def test_web_pages_are_refused(client, header):
    request = urllib.request.Request(
        f"{client.endpoint}/2015-03-31/functions", headers=dict([header])
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    with caught.value as error:
        assert error.code == 403
