"""Look for what would keep a job from running on AWS, and say what to do about each thing."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from smlt._version import __version__
from smlt.aws.api import Api
from smlt.aws.release import function_prefix
from smlt.errors import SmltError, StoreUnreachableError
from smlt.io.stores import open_object_store, open_parameter_store
from smlt.worker.probe import PROBE

_CONCURRENCY_QUOTA = "L-B99A9384"
_REACH_S = 3.0
_CLOCK_S = 60.0
"""AWS refuses signatures that are 5 minutes off; much sooner, times in logs mislead."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool
    detail: str
    """What was found; of a fault, also what to do about it."""


async def examine(
    api: Api, name: str, objects: str, parameters: str | None, workers: int
) -> list[Finding]:
    """Look at credentials, clock, quota, bucket, and what a deployed function sees."""
    if api.region is None:
        why = "none is named: set AWS_REGION, or region in [aws] of smlt.toml"
        return [Finding("region", False, why)]
    findings = [Finding("region", True, api.region)]
    try:
        who = await api.call("sts", "get_caller_identity", "asking AWS who we are")
    except SmltError as exc:
        return [*findings, Finding("credentials", False, str(exc))]
    findings.append(Finding("credentials", True, str(who["Arn"])))
    findings.append(_clock(who))
    findings.append(await _bucket(objects))
    if parameters is not None:
        findings.append(await _parameters(parameters))
    findings.append(await _quota(api, workers))
    findings += await _function(api, name, objects, parameters)
    return findings


def _clock(answer: dict[str, Any]) -> Finding:
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if said is None:
        return Finding("clock", True, "AWS did not say its time")
    off_s = time.time() - parsedate_to_datetime(said).timestamp()
    if abs(off_s) > _CLOCK_S:
        why = f"this machine's is {off_s:+.0f} s off AWS's: set it, best by NTP"
        return Finding("clock", False, why)
    return Finding("clock", True, f"within {abs(off_s):.0f} s of AWS's")


async def _bucket(objects: str) -> Finding:
    try:
        async with open_object_store(objects) as store:
            await store.head("code/none")
    except SmltError as exc:
        return Finding("object store", False, str(exc))
    return Finding("object store", True, objects.partition("?")[0])


async def _parameters(url: str) -> Finding:
    """Try the parameter store from here; a job does without, by way of a function."""
    what = "parameter store from here"
    try:
        async with open_parameter_store(url, time_limit_s=_REACH_S) as store:
            await store.discard(["smlt"])
    except StoreUnreachableError:
        return Finding(what, True, "is not reached; a job goes through a function, the gateway")
    except SmltError as exc:
        return Finding(what, False, str(exc))
    return Finding(what, True, "answers")


async def _quota(api: Api, workers: int) -> Finding:
    try:
        settings = await api.call("lambda", "get_account_settings", "asking for the quota")
    except SmltError as exc:
        return Finding("concurrency", False, str(exc))
    free = int(settings["AccountLimit"]["UnreservedConcurrentExecutions"])
    if free < workers:
        total = int(settings["AccountLimit"]["ConcurrentExecutions"])
        wanted = total + workers - free
        return Finding(
            "concurrency",
            False,
            f"the account may run {free} functions at a time beside those that are reserved, and "
            f"the job has {workers} workers: use fewer, or {await _raising(api, total, wanted)}",
        )
    return Finding("concurrency", True, f"{free} functions at a time")


async def _raising(api: Api, total: int, wanted: int) -> str:
    """Say how the quota is raised, or that this has been asked for."""
    quota = {"ServiceCode": "lambda", "QuotaCode": _CONCURRENCY_QUOTA}
    try:
        asked = await api.all(
            "service-quotas",
            "list_requested_service_quota_change_history_by_quota",
            "asking for quota requests",
            "RequestedQuotas",
            **quota,
        )
    except SmltError:
        asked = []  # not allowed to know
    if pending := [one for one in asked if one.get("Status") in ("PENDING", "CASE_OPENED")]:
        return f"wait for AWS to grant the {pending[0]['DesiredValue']:.0f} that were asked for"
    return (
        f"have the quota of {total} raised: aws service-quotas request-service-quota-increase "
        f"--service-code lambda --quota-code {_CONCURRENCY_QUOTA} --desired-value {wanted}"
    )


async def _function(api: Api, name: str, objects: str, parameters: str | None) -> list[Finding]:
    """Ask the newest version of one function of the deployment what it sees."""
    try:
        listed = await api.all("lambda", "list_functions", "looking for functions", "Functions")
    except SmltError as exc:
        return [Finding("function", False, str(exc))]
    names = sorted(f["FunctionName"] for f in listed)
    found = next((one for one in names if one.startswith(function_prefix(name))), None)
    if found is None:
        return [Finding("function", True, "none is deployed yet, so none was asked")]
    question = {PROBE: True, "objects": objects, "parameters": parameters or objects}
    try:
        versions = await api.all(
            "lambda",
            "list_versions_by_function",
            "looking for versions",
            "Versions",
            FunctionName=found,
        )
        answer = await api.call(
            "lambda",
            "invoke",
            f"invoking {found}",
            FunctionName=found,
            Qualifier=versions[-1]["Version"],
            Payload=json.dumps(question).encode(),
        )
        seen = json.loads(await answer["Payload"].read())
    except SmltError as exc:
        return [Finding("function", False, str(exc))]
    if "FunctionError" in answer or "smlt" not in seen:
        said = seen.get("errorMessage", seen) if isinstance(seen, dict) else seen
        return [Finding("function", False, f"{found} fails: {said}; deploy again")]
    return [_versions(found, seen), _clock_there(seen), *_stores(seen, parameters)]


def _versions(name: str, seen: dict[str, Any]) -> Finding:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    detail = f"{name} runs smlt {seen['smlt']} on Python {seen['python']}, {seen['machine']}"
    if seen["smlt"] != __version__:
        return Finding("function", False, f"{detail}; here it is {__version__}: deploy again")
    if seen["python"] != ours:
        detail += f" (here: Python {ours}; code that runs on one alone would fail)"
    return Finding("function", True, detail)


def _clock_there(seen: dict[str, Any]) -> Finding:
    off_s = time.time() - float(seen["time"])
    if abs(off_s) > _CLOCK_S:
        why = f"this machine's is {off_s:+.0f} s off the function's: set it, best by NTP"
        return Finding("clock from there", False, why)
    return Finding("clock from there", True, f"within {abs(off_s):.0f} s of ours")


def _stores(seen: dict[str, Any], parameters: str | None) -> list[Finding]:
    advice = {
        "objects": "let the functions' role read and write there; in a private network, give it an "
        "endpoint to S3 (deploy/parameter-store.yaml has one)",
        "data": "let the functions' security group reach the file system's port 2049, and put the "
        "data into the folder that efs_data names",
        "parameters": "put the functions into its network with subnets and security_groups in "
        "[aws], and let these reach its port",
    }
    titles = {
        "objects": "object store from there",
        "parameters": "parameter store from there",
        "data": "data from there",
    }
    wanted = [key for key in titles if key != "parameters" or parameters is not None]
    return [
        Finding(
            titles[key], not seen[key], f"{seen[key]}; {advice[key]}" if seen[key] else "answers"
        )
        for key in wanted
    ]
