"""Predict the time of a training step for any number and size of functions, from a few measured.

A step is a rank's share of the batch, computed at the speed of its vCPUs, and the part of the
communication that the computation does not hide:

    compute = work · samples · share(n) / speed(vCPUs) + fixed
    communication = max(0, shard/m + link·(1 + n/m)/2 + store·n + latency·n − overlap · compute)

All coefficients are non-negative and have weak priors, so two worker counts are enough to begin
with; what they leave open widens the prediction interval. The method is maximum a posteriori
estimation by robust (soft-L1) least squares on the logarithms, with a Laplace approximation of
the posterior for the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

from smlt.config.limits import MB_PER_VCPU
from smlt.control.step_measurement import Array, Granularity, Measurement, Setting

LINK_BYTES_PER_S = 70e6  # of one function each way, as third parties measured it
STORE_BYTES_PER_S = 1.25e9  # of one server, that is, 10 Gbit/s
MESSAGE_S = 1e-3  # that one rank more costs each of the others, whatever the size

COMPUTE_NOISE = 0.03  # relative spread of a mean over some steps
COMMUNICATION_NOISE = 0.05
NOISE_WEIGHT = 4.0  # the noise above counts as much as that many measurements
UNKNOWN = 5.0  # a logarithm that may be off by this much is not known at all
UNMEASURED_COMMUNICATION = 0.25  # of a step, when nothing at all is known about it

# Parameters, as multiples of a scale taken from the data, with the spread of their priors.
PARAMETERS = ("work", "fixed", "serial", "shard", "link", "store", "latency", "overlap")
_START = np.array([1.0, 0.01, 0.1, 0.25, 0.25, 0.25, 0.05, 0.01])
_PRIOR_MEAN = np.array([1.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
_PRIOR_SD = np.array([np.inf, 0.05, 0.1, 1.0, 0.4, 1.0, 0.5, 0.05])
_UPPER = np.array([np.inf, np.inf, 1.0, np.inf, np.inf, np.inf, np.inf, 1.0])


class StepPrediction(NamedTuple):
    """Seconds per step: arrays with one entry per setting."""

    step_s: Array
    low_s: Array
    high_s: Array
    compute_s: Array
    communication_s: Array
    log_sd: Array
    """Standard deviation of the logarithm of step_s."""


@dataclass(frozen=True, slots=True)
class PerformanceModel:
    """A fitted model; see `fit_performance`."""

    scales: _Scales
    parameters: Array
    covariance: Array
    noise: float
    """Relative standard deviation of a measured step around the model."""
    log_evidence: float = 0.0
    """How well it explains what was measured, up to a constant that all models share."""

    def predict(self, settings: Sequence[Setting], confidence: float = 0.9) -> StepPrediction:
        """Predict steps that have not been run, each with an interval of that confidence."""
        features = _Features.of(settings, self.scales.granularity)
        compute, communication = self._parts(features, self.parameters)
        step = compute + communication
        gradient = self._log_gradient(features)
        variance = np.einsum("ij,jk,ik->i", gradient, self.covariance, gradient)
        log_sd = np.sqrt(np.clip(variance, 0.0, UNKNOWN**2) + self.noise**2)
        factor = np.exp(NormalDist().inv_cdf((1 + confidence) / 2) * log_sd)
        return StepPrediction(step, step / factor, step * factor, compute, communication, log_sd)

    def sensitivities(self, settings: Sequence[Setting]) -> Array:
        """How each parameter, moved by the spread of its prior, changes the log of a step's time.

        Shape (settings, parameters). Together they span the errors to be expected of the model.
        """
        features = _Features.of(settings, self.scales.granularity)
        sensitivities: Array = self._log_gradient(features) * np.minimum(_PRIOR_SD, 1.0)
        return sensitivities

    def _parts(self, features: _Features, parameters: Array) -> tuple[Array, Array]:
        return _parts(features, self.scales, parameters)

    def _log_gradient(self, features: _Features) -> Array:
        """Derivative of log step time by each parameter; shape (settings, parameters)."""
        columns = []
        here = np.log(sum(self._parts(features, self.parameters)))
        for index in range(len(self.parameters)):
            moved = self.parameters.copy()
            moved[index] += 1e-5
            columns.append((np.log(sum(self._parts(features, moved))) - here) / 1e-5)
        return np.stack(columns, axis=1)


def fit_performance(
    measurements: Sequence[Measurement], granularity: Granularity | None = None
) -> PerformanceModel:
    """Fit the model to measured steps.

    One measurement is enough for a first guess; two different worker counts give a prediction.

    Raises:
        ValueError: there is no measurement.
    """
    if not measurements:
        raise ValueError("a performance model needs at least one measured step")
    granularity = granularity or Granularity()
    features = _Features.of([m.setting for m in measurements], granularity)
    scales = _Scales.of(measurements, features, granularity)
    targets = _Targets.of(measurements)
    expected, spread = _prior(features, scales)

    def residuals(parameters: Array) -> Array:
        misfit = targets.misfit(*_parts(features, scales, parameters))
        return np.concatenate([misfit, (parameters - expected) / spread])

    result: Any = least_squares(
        residuals, _START, bounds=(np.zeros(len(_START)), _UPPER), loss="soft_l1", x_scale=0.1
    )
    squares = float(np.sum(targets.misfit(*_parts(features, scales, result.x)) ** 2))
    inflation = (NOISE_WEIGHT + squares) / (NOISE_WEIGHT + targets.count)
    measured, believed = result.jac[: -len(expected)], result.jac[-len(expected) :]
    precision = measured.T @ measured / inflation + believed.T @ believed
    covariance = np.linalg.pinv(precision)
    noise = COMPUTE_NOISE * float(np.sqrt(inflation))
    return PerformanceModel(scales, result.x, covariance, noise, -float(result.cost))


@dataclass(frozen=True, slots=True)
class _Features:
    """What the terms of the model are proportional to; arrays with one entry per setting."""

    share: Array
    vcpus: Array
    samples: Array
    peers: Array
    shard: Array
    link: Array
    wire: Array
    known_wire: bool

    @classmethod
    def of(cls, settings: Sequence[Setting], granularity: Granularity) -> _Features:
        workers = np.array([s.workers for s in settings], dtype=np.float64)
        owners = np.array([s.aggregators or s.workers for s in settings], dtype=np.float64)
        wire = np.array([(s.wire_bytes or 1.0) * s.wire_share for s in settings])
        remote = (workers - 1) / workers  # the share of a gradient that has to travel at all
        return cls(
            share=granularity.share(workers),
            vcpus=np.array([s.memory_mb / MB_PER_VCPU for s in settings]),
            samples=np.array([s.samples for s in settings]),
            peers=workers - 1,
            shard=wire * remote / owners,
            link=wire * remote * (1 + workers / owners) / 2,
            wire=wire,
            known_wire=all(s.wire_bytes for s in settings),
        )


@dataclass(frozen=True, slots=True)
class _Scales:
    """Units in which the parameters are of order one."""

    work_s: float
    """Seconds for one unit of samples on one vCPU."""
    fixed_s: float
    communication_s: float
    workers: float
    """Typical number of workers, at which the terms of the communication are compared."""
    wire: float
    granularity: Granularity

    @classmethod
    def of(
        cls, measurements: Sequence[Measurement], features: _Features, granularity: Granularity
    ) -> _Scales:
        speed = _speed(features.vcpus, _PRIOR_MEAN[2])
        compute = np.array([m.step_s - (m.communication_s or 0.0) for m in measurements])
        measured = [m.communication_s for m in measurements if m.communication_s]
        wire = _geometric_mean(features.wire)
        if measured:
            communication = _geometric_mean(np.array(measured))
        elif features.known_wire:
            communication = 2 * wire / LINK_BYTES_PER_S
        else:
            communication = UNMEASURED_COMMUNICATION * _geometric_mean(compute)
        return cls(
            work_s=_geometric_mean(compute * speed / (features.share * features.samples)),
            fixed_s=_geometric_mean(compute),
            communication_s=communication,
            workers=max(2.0, _geometric_mean(features.peers + 1)),
            wire=wire,
            granularity=granularity,
        )


@dataclass(frozen=True, slots=True)
class _Targets:
    """What was measured: both parts of a step where they are known, else their sum."""

    compute_s: Array
    communication_s: Array
    split: NDArray[np.bool_]
    count: int

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> _Targets:
        communication = np.array([m.communication_s or 0.0 for m in measurements])
        step = np.array([m.step_s for m in measurements])
        split = communication > 0
        return cls(step - communication, communication, split, len(step) + int(split.sum()))

    def misfit(self, compute: Array, communication: Array) -> Array:
        """Return the logarithms of predicted over measured, in units of the expected noise."""
        split = self.split
        predicted = np.where(split, compute, compute + communication)
        return np.concatenate(
            [
                np.log(predicted / self.compute_s) / COMPUTE_NOISE,
                np.log(communication[split] / self.communication_s[split]) / COMMUNICATION_NOISE,
            ]
        )


def _prior(features: _Features, scales: _Scales) -> tuple[Array, Array]:
    """Return mean and spread of what is believed of the parameters before anything is measured.

    Where a gradient's bytes are known and nothing was ever sent, links say what to expect.
    """
    mean, spread = _PRIOR_MEAN.copy(), _PRIOR_SD.copy()
    if features.known_wire and not np.any(features.peers):
        expected_s = {
            "link": 2 * scales.wire / LINK_BYTES_PER_S,
            "store": 3 * scales.wire / STORE_BYTES_PER_S * scales.workers,
            "latency": MESSAGE_S * scales.workers,
        }
        for name, seconds in expected_s.items():
            index = PARAMETERS.index(name)
            mean[index] = seconds / scales.communication_s
            spread[index] = 0.5 * mean[index]
        spread[PARAMETERS.index("shard")] = 0.25
    return mean, spread


def _parts(features: _Features, scales: _Scales, parameters: Array) -> tuple[Array, Array]:
    work, fixed, serial, shard, link, store, latency, overlap = parameters
    batch = features.share * features.samples
    compute = scales.work_s * work * batch / _speed(features.vcpus, serial)
    compute = compute + scales.fixed_s * fixed / np.minimum(features.vcpus, 1.0)
    typical = scales.workers
    terms = shard * features.shard * typical + link * features.link
    terms = (terms + store * features.wire * features.peers / typical) / scales.wire
    raw = scales.communication_s * (terms + latency * features.peers / typical)
    return compute, _positive(raw - overlap * compute, 0.01 * raw)


def _speed(vcpus: Array, serial: float) -> Array:
    """Amdahl's law above one vCPU; below it a function gets a part of one."""
    return np.where(vcpus <= 1, vcpus, 1 / (serial + (1 - serial) / np.maximum(vcpus, 1.0)))


def _positive(values: Array, width: Array) -> Array:
    """max(0, x), rounded off at the given width so that least squares finds its way."""
    positive: Array = 0.5 * (values + np.sqrt(values**2 + width**2))
    return positive + 1e-12


def _geometric_mean(values: Array) -> float:
    return float(np.exp(np.mean(np.log(values))))
