"""Workers' prints read through boto3's logs client, as on AWS."""

import time

import pytest
from botocore.exceptions import ClientError


@pytest.fixture(scope="module")
def talker(client):
    """A function with two log streams: prints of environment one and of environment two."""
    name = client.create(name="talker")
    client.invoke(name, {"do": "print", "lines": [f"one {n}" for n in range(5)]})
    client.api.update_function_configuration(FunctionName=name, Timeout=9)
    client.invoke(name, {"do": "print", "lines": [f"two {n}" for n in range(5)]})
    return name


def group(name):
    return f"/aws/lambda/{name}"


def test_log_group_is_listed(client, talker):
    found = client.logs.describe_log_groups(logGroupNamePrefix=group(talker))["logGroups"]
    assert [one["logGroupName"] for one in found] == [group(talker)]
    assert found[0]["creationTime"] == pytest.approx(time.time() * 1000, abs=60_000)


def test_log_streams_are_one_per_environment_newest_first(client, talker):
    found = client.logs.describe_log_streams(
        logGroupName=group(talker), orderBy="LastEventTime", descending=True
    )["logStreams"]
    assert len(found) == 2
    assert all("/[$LATEST]" in one["logStreamName"] for one in found)
    assert found[0]["logStreamName"] == client.environments(talker)[0]["log_stream"]
    assert found[0]["lastEventTimestamp"] >= found[1]["lastEventTimestamp"]


def test_filter_log_events_merges_streams_by_time(client, talker):
    events = client.logs.filter_log_events(logGroupName=group(talker))["events"]
    prints = [e["message"].strip() for e in events if e["message"][:4] in ("one ", "two ")]
    assert prints == [f"{which} {n}" for which in ("one", "two") for n in range(5)]
    stamps = [event["timestamp"] for event in events]
    assert stamps == sorted(stamps)
    assert len({event["eventId"] for event in events}) == len(events)


def test_filter_log_events_by_term_and_stream(client, talker):
    filter_events = client.logs.filter_log_events
    found = filter_events(logGroupName=group(talker), filterPattern='"one 3"')["events"]
    assert [event["message"] for event in found] == ["one 3\n"]
    only = filter_events(
        logGroupName=group(talker),
        logStreamNames=[found[0]["logStreamName"]],
        filterPattern="two",
    )
    assert only["events"] == []


def test_filter_log_events_since_a_moment(client, talker):
    filter_events = client.logs.filter_log_events
    events = filter_events(logGroupName=group(talker))["events"]
    middle = next(e["timestamp"] for e in events if e["message"] == "two 0\n")
    later = filter_events(logGroupName=group(talker), startTime=middle)["events"]
    assert later == [event for event in events if event["timestamp"] >= middle]
    earlier = filter_events(logGroupName=group(talker), endTime=middle - 1)["events"]
    assert earlier + later == events


def test_filter_log_events_page_by_page_gives_all(client, talker):
    pages = client.logs.get_paginator("filter_log_events").paginate(
        logGroupName=group(talker), PaginationConfig={"PageSize": 3}
    )
    paged = [event["eventId"] for page in pages for event in page["events"]]
    whole = client.logs.filter_log_events(logGroupName=group(talker))["events"]
    assert paged == [event["eventId"] for event in whole]


def test_get_log_events_follows_a_stream(client, talker):
    stream = client.environments(talker)[0]["log_stream"]
    request = {"logGroupName": group(talker), "logStreamName": stream}
    head = client.logs.get_log_events(**request, startFromHead=True, limit=2)
    assert head["events"][0]["message"].startswith("START RequestId:")
    token = head["nextForwardToken"]
    rest = client.logs.get_log_events(**request, nextToken=token)
    assert [event["message"] for event in rest["events"]][:2] == ["two 1\n", "two 2\n"]
    end = rest["nextForwardToken"]
    assert client.logs.get_log_events(**request, nextToken=end)["nextForwardToken"] == end
    client.invoke(talker, {"do": "print", "lines": ["news"]})
    news = client.logs.get_log_events(**request, nextToken=end)["events"]
    assert "news\n" in [event["message"] for event in news]
    tail = client.logs.get_log_events(**request, limit=1)
    assert tail["events"][0]["message"].startswith("REPORT RequestId:")
    before = client.logs.get_log_events(**request, nextToken=tail["nextBackwardToken"], limit=1)
    assert before["events"][0]["message"].startswith("END RequestId:")


def test_log_lines_lie_on_disk_with_their_time(client, cloud, talker):
    from pathlib import Path

    directory = Path(cloud.parameters.removeprefix("unix://")).parent / "logs" / talker
    text = "".join(path.read_text() for path in directory.glob("*.log"))
    assert text.count("Z one 3\n") == 1
    assert "Z REPORT RequestId: " in text


def test_unknown_group_stream_call_and_pattern_are_refused(client, talker):
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.logs.filter_log_events(logGroupName="/aws/lambda/nobody")
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.logs.get_log_events(logGroupName=group(talker), logStreamName="none")
    with pytest.raises(ClientError, match="not 'CreateLogGroup'"):
        client.logs.create_log_group(logGroupName="x")
    with pytest.raises(ClientError, match="words and quoted phrases only"):
        client.logs.filter_log_events(logGroupName=group(talker), filterPattern="{ $.x = 1 }")


def test_deleted_group_is_gone(client):
    name = client.create()
    client.invoke(name)
    client.logs.delete_log_group(logGroupName=group(name))
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.logs.filter_log_events(logGroupName=group(name))
    # The warm environment goes on, and so does LogResult.
    assert client.invoke(name)["error"] is None
