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
from smlt.errors import SmltError
from smlt.io.stores import open_object_store
from smlt.worker.probe import PROBE

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


async def _quota(api: Api, workers: int) -> Finding:
    try:
        settings = await api.call("lambda", "get_account_settings", "asking for the quota")
    except SmltError as exc:
        return Finding("concurrency", False, str(exc))
    free = int(settings["AccountLimit"]["UnreservedConcurrentExecutions"])
    if free < workers:
        return Finding(
            "concurrency",
            False,
            f"the account may run {free} functions at a time, and the job has {workers} workers: "
            "use fewer, or have the quota raised (Service Quotas, Lambda, Concurrent executions)",
        )
    return Finding("concurrency", True, f"{free} functions at a time")


async def _function(api: Api, name: str, objects: str, parameters: str | None) -> list[Finding]:
    """Ask the newest version of one function of the deployment what it sees."""
    listed = await api.all("lambda", "list_functions", "looking for functions", "Functions")
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
    return [_versions(found, seen), *_stores(seen, parameters)]


def _versions(name: str, seen: dict[str, Any]) -> Finding:
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    detail = f"{name} runs smlt {seen['smlt']} on Python {seen['python']}, {seen['machine']}"
    if seen["smlt"] != __version__:
        return Finding("function", False, f"{detail}; here it is {__version__}: deploy again")
    if seen["python"] != ours:
        detail += f" (here: Python {ours}; code that runs on one alone would fail)"
    return Finding("function", True, detail)


def _stores(seen: dict[str, Any], parameters: str | None) -> list[Finding]:
    advice = {
        "objects": "let the functions' role read and write there; in a private network, give it an "
        "endpoint to S3 (deploy/parameter-store.yaml has one)",
        "parameters": "put the functions into its network with subnets and security_groups in "
        "[aws], and let these reach its port",
    }
    titles = {"objects": "object store from there", "parameters": "parameter store from there"}
    wanted = ("objects",) if parameters is None else ("objects", "parameters")
    return [
        Finding(
            titles[key], not seen[key], f"{seen[key]}; {advice[key]}" if seen[key] else "answers"
        )
        for key in wanted
    ]
