"""Say what a job would take and cost, and by which plan, without starting any of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smlt.config import TrainConfig
from smlt.config.aws import AwsConfig, aws_region
from smlt.config.limits import MB_PER_VCPU
from smlt.config.sharding import sharding
from smlt.control import artifact_manager
from smlt.control.data_mirror import DataMirror
from smlt.control.forecast import (
    Forecast,
    Workload,
    forecasts,
    out_of_reach,
    recommended,
    store_prices,
)
from smlt.control.goals import Goals
from smlt.control.job_settings import first_plan, function_environment, training_settings
from smlt.control.performance_model import fit_performance
from smlt.control.plan_grid import plan_grid, plans_of
from smlt.control.prices import REGION, Prices, prices_of, read_prices
from smlt.control.step_cost import StepCost, wire_share
from smlt.control.step_measurement import Granularity, Measurement, Setting
from smlt.errors import TaskError
from smlt.messages.job import JobSpec, ResourcePlan
from smlt.worker.profile import Profile, ProfileRequest
from smlt.worker.task_loader import find_class
from smlt.worker.task_params import parse_params

_PROFILE_S = 20.0  # all timed steps together, of one number of threads
_LOAD_S = 300.0  # to import the task and to open its data
_COLD_START_S = 2.0  # of a function, beside what the task takes to load
_GLANCE_S = 2.0  # all timed steps together, where nothing was asked for and nothing is known
_DOUBT = 2.0  # what they say of others may be off by this factor


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """What is known of a job that has not begun."""

    basis: str
    """Where the step times come from, in words."""
    workload: Workload
    plans: list[Forecast]
    best: Forecast
    best_on_s3: Forecast
    """Of all plans, where the parameter store is S3 instead of Valkey."""
    node: str
    notices: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Planning:
    """Plans one job from its settings."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        measured: Mapping[ResourcePlan, float] | None = None,
        profile: bool = False,
        node: str = "cache.r7g.large",
        aws: AwsConfig | None = None,
    ) -> None:
        """Take the settings of the job.

        Args:
            config: as for a Session.
            measured: seconds of a step, for plans of which they are known.
            profile: time some steps on this machine.
            node: type of the ElastiCache node that Valkey is to run on.
            aws: of its region and architecture are the prices; by default looked for as usual.
        """
        self._config = replace(config, adapt=True, inline=False)
        self._measured = dict(measured or {})
        self._profile = profile
        self._node = node
        self._aws = AwsConfig.load({}) if aws is None else aws

    def report(self) -> PlanReport:
        """Forecast all plans of the job.

        Raises:
            UserError: a setting, the task or the data cannot be used.
        """
        config = self._config
        prices, notices = self._prices()
        on_valkey, on_s3 = store_prices(prices, self._node)
        spec = JobSpec(target=config.target, **training_settings(config, cores=None))
        goals = Goals.of(spec)
        profile, measurements = self._look()
        if not profile.has_end:
            notices.append("the job has no end of its own: what one epoch takes is shown")
        work = self._workload(profile, spec.shard_bytes)
        doubt = 1.0 if self._profile or self._measured else _DOUBT
        model = fit_performance(measurements, Granularity(virtual_workers=spec.virtual_workers))
        plans = plans_of(plan_grid(spec, first_plan(config)))

        def priced(work: Workload, store: Any, aggregators: int | None) -> list[Forecast]:
            cost = StepCost(
                prices=prices,
                architecture="arm64" if self._aws.architecture == "arm64" else "x86_64",
                store=store,
                gradient_bytes=work.gradient_bytes,
                shard_bytes=work.shard_bytes,
                aggregators=aggregators,
                wire_dtype=spec.wire_dtype,
            )
            return forecasts(plans, model, work, cost, goals, spec.limits, doubt=doubt)

        rows = priced(work, on_valkey, config.aggregators)
        larger, few = sharding(
            "s3://", config.workers, shard_mb=config.shard_mb, aggregators=config.aggregators
        )
        rows_on_s3 = priced(replace(work, shard_bytes=larger), on_s3, few)
        missed = out_of_reach(rows, goals)
        return PlanReport(
            basis=self._basis(len(profile.times)),
            workload=work,
            plans=rows,
            best=recommended(rows, goals),
            best_on_s3=recommended(rows_on_s3, goals),
            node=self._node,
            notices=[*notices, *([missed] if missed else [])],
        )

    def _prices(self) -> tuple[Prices, list[str]]:
        """Return the region's prices, or all of us-east-1's and a sentence that says so."""
        region = self._aws.region or aws_region() or REGION
        prices = prices_of(region, self._config.prices)
        knows_all = prices.region == region and prices.knows("elasticache", "nodes", self._node)
        if knows_all or region == REGION:
            return prices, []
        notice = (
            f"not all prices of {region} are known: costs are those of {REGION}; give your own "
            "with --prices"
        )
        return read_prices(self._config.prices), [notice]

    def _look(self) -> tuple[Profile, list[Measurement]]:
        """Look at the task, and return all that is known of its step times."""
        config = self._config
        target = artifact_manager.locate(config.target, Path.cwd())
        if config.remote_data is not None:
            mirror = DataMirror(config.remote_data, config.run_dir.resolve())
            data: Path | None = asyncio.run(mirror.refresh())
        else:
            data = artifact_manager.find_data(target, config.data_folder)
        request = ProfileRequest(
            target=target.reference,
            params=parse_params(find_class(target.reference, target.root), config.params),
            root=str(target.root),
            data=None if data is None else str(data),
            seed=config.seed,
            batch_size=config.batch_size,
            virtual_workers=config.streams,
            epochs=config.epochs,
            steps=config.steps,
            limit_s=_PROFILE_S if self._profile else 0.0 if self._measured else _GLANCE_S,
        )
        profile = _run(request, MB_PER_VCPU)
        found = _as_measurements(profile, MB_PER_VCPU)
        if self._profile and (os.cpu_count() or 1) > 1:
            twice = _as_measurements(_run(request, 2 * MB_PER_VCPU), 2 * MB_PER_VCPU)
            # Slower with two threads: the cores have other work, and tell nothing of two vCPUs.
            found += [
                two for one, two in zip(found, twice, strict=False) if two.step_s < one.step_s
            ]
        for plan, step_s in self._measured.items():
            setting = Setting(
                workers=plan.workers,
                memory_mb=plan.memory_mb,
                samples=config.batch_size,
                wire_bytes=profile.gradient_bytes,
                wire_share=wire_share(config.wire_dtype),
            )
            found.append(Measurement(setting=setting, step_s=step_s))
        return profile, found

    def _basis(self, timed: int) -> str:
        """Say where the step times come from."""
        known = [f"{len(self._measured)} known plans"] if self._measured else []
        if self._profile:
            known.append(f"steps timed here, of {timed} sizes")
        return " and ".join(known) or "a glance at some samples here; --profile looks closer"

    def _workload(self, profile: Profile, shard_bytes: int) -> Workload:
        return Workload(
            steps=sum(steps for steps, _ in profile.batches),
            batch_size=profile.batches[0][1],
            batches=profile.batches,
            gradient_bytes=profile.gradient_bytes,
            wire_bytes=int(profile.gradient_bytes * wire_share(self._config.wire_dtype)),
            shard_bytes=shard_bytes,
            evaluations=profile.evaluations,
            evaluation_s=profile.evaluation_s,
            start_s=profile.load_s + _COLD_START_S,
            needed_mb=profile.peak_mb if profile.times else 0.0,
        )


def _as_measurements(profile: Profile, memory_mb: int) -> list[Measurement]:
    """A rank of n computes on its share of the batch as one rank does on a batch of that size."""
    return [
        Measurement(
            setting=Setting(
                workers=1,
                memory_mb=memory_mb,
                samples=samples,
                wire_bytes=profile.gradient_bytes,
            ),
            step_s=seconds,
        )
        for samples, seconds in profile.times
    ]


def _run(request: ProfileRequest, memory_mb: int) -> Profile:
    """Look at the task in a process with the threads that a function of this size has.

    Raises:
        TaskError: the task cannot be used, or the process ended without an answer.
    """
    limit_s = _LOAD_S + 3 * request.limit_s
    with tempfile.TemporaryDirectory(prefix="smlt-profile-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(asdict(request)), encoding="utf-8")
        command = [sys.executable, "-m", "smlt.worker.profile", str(asked), str(answered)]
        try:
            ended = subprocess.run(
                command,
                env=os.environ | function_environment(memory_mb),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TaskError(
                f"loading the task and timing its steps took more than {limit_s:.0f} s: "
                "give a smaller --batch-size, or --measured instead of --profile"
            ) from None
        if not answered.is_file():
            said = ended.stdout.decode(errors="replace").strip().splitlines()
            raise TaskError(
                f"the process that looked at the task ended with code {ended.returncode}"
                + (f": {said[-1]}" if said else "")
            )
        answer = json.loads(answered.read_text(encoding="utf-8"))
    if "error" in answer:
        raise TaskError(answer["error"])
    return Profile(**answer)
