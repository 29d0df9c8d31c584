"""The name of every key and stream, in one place.

Everything of one generation carries the hash tag ``{job:generation}``, so that on a cluster a
shard, its notice and the marker lie in one slot and go through one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobObjects:
    """Keys of a job in the object store."""

    job_id: str

    @property
    def state(self) -> str:
        return f"jobs/{self.job_id}/job.json"

    @property
    def model(self) -> str:
        return f"jobs/{self.job_id}/model.safetensors"

    @property
    def best(self) -> str:
        return f"jobs/{self.job_id}/best.safetensors"

    @property
    def checkpoints(self) -> str:
        return f"jobs/{self.job_id}/checkpoints/"

    def generation(self, generation: int) -> str:
        return f"{self.checkpoints}{generation:06d}/"

    def manifest(self, generation: int, step: int) -> str:
        return f"{self.generation(generation)}{step:09d}/manifest.json"

    def part(self, generation: int, step: int, part: int) -> str:
        return f"{self.generation(generation)}{step:09d}/part-{part:05d}.safetensors"

    def residuals(self, generation: int, step: int) -> str:
        """What every residual of a step begins with."""
        return f"{self.generation(generation)}{step:09d}/residual-"

    def residual(self, generation: int, step: int, rank: int) -> str:
        """What one rank owes of rounded gradients."""
        return f"{self.residuals(generation, step)}{rank:05d}.safetensors"


def job_objects(job_id: str) -> str:
    """What every key of a job in the object store begins with."""
    return f"jobs/{job_id}/"


def package_key(code: str) -> str:
    """The deployment package with this SHA-256."""
    return f"code/{code}.zip"


def layer_key(digest: str) -> str:
    """The layer of packages with this digest."""
    return f"layers/{digest}.zip"


def bundle_key(sha256: str) -> str:
    """A package that does not fit a function, compressed."""
    return f"bundles/{sha256}.tar.lz4"


def bundle_list_key(digest: str) -> str:
    """The list of a function's bundles, by its SHA-256."""
    return f"bundles/{digest}.json"


def blob_key(sha256: str) -> str:
    """A file of the user's data, by content."""
    return f"data/{sha256}"


def data_manifest_key(sha256: str) -> str:
    return f"manifests/{sha256}.json"


def job_prefix(job_id: str) -> str:
    """What every key of a job in the parameter store begins with."""
    return f"smlt:{{{job_id}:"


@dataclass(frozen=True, slots=True)
class GenerationKeys:
    """Keys and streams of one generation in the parameter store."""

    job_id: str
    generation: int
    lane: str = ""
    """Apart from other lanes of the generation: steps that run side by side, or a process group."""

    @property
    def _tag(self) -> str:
        return f"{job_prefix(self.job_id)}{self.generation}}}"

    @property
    def _lane(self) -> str:
        return f"{self._tag}:{self.lane}" if self.lane else self._tag

    @property
    def prefix(self) -> str:
        """What every key of the generation begins with."""
        return f"{self._tag}:"

    @property
    def lane_prefix(self) -> str:
        """What the frames and streams of this lane begin with."""
        return f"{self._lane}:"

    @property
    def marker(self) -> str:
        return f"{self._tag}:marker"

    @property
    def roster(self) -> str:
        return f"{self._tag}:roster"

    @property
    def abort(self) -> str:
        return f"{self._tag}:abort"

    @property
    def control(self) -> str:
        """Stream: claims, roster, stop, abort, standings, manifests, leavings."""
        return f"{self._tag}:control"

    @property
    def reports(self) -> str:
        return f"{self._tag}:reports"

    @property
    def client(self) -> str:
        """The client's lease."""
        return f"{self._tag}:client"

    def claim(self, rank: int) -> str:
        return f"{self._tag}:claim:{rank}"

    def lease(self, rank: int) -> str:
        return f"{self._tag}:lease:{rank}"

    def contributions(self, owner: int) -> str:
        """Stream: shards put for this owner."""
        return f"{self._lane}:contributions:{owner}"

    @property
    def means(self) -> str:
        """Stream: means put by their owners."""
        return f"{self._lane}:means"

    def contribution(self, step: int, shard: int, rank: int) -> str:
        return f"{self._lane}:{step}:{shard}:{rank}"

    def mean(self, step: int, shard: int) -> str:
        return f"{self._lane}:{step}:{shard}:mean"

    def layout(self, number: int) -> str:
        """What the first rank to come there is about to average."""
        return f"{self._lane}:layout:{number}"

    def inbox(self, rank: int) -> str:
        """Stream: parcels for this rank alone, and what others have fetched of its own."""
        return f"{self._lane}:inbox:{rank}"

    @property
    def board(self) -> str:
        """Stream: parcels for every rank."""
        return f"{self._lane}:board"

    def parcel(self, label: str, source: int) -> str:
        return f"{self._lane}:parcel:{label}:{source}"

    def fetched(self, rank: int) -> str:
        """An empty value: what a rank says of parcels is in the notice beside it."""
        return f"{self._lane}:fetched:{rank}"


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """Keys by which the ranks of a drop-in job find one another.

    The sessions of a job are numbered; each is a generation of its own, with a random number that
    its founder chose. A slash keeps the name apart from every trained job.
    """

    job: str

    @property
    def job_id(self) -> str:
        return f"dropin/{self.job}"

    @property
    def _tag(self) -> str:
        return f"{job_prefix(self.job_id)}sessions}}"

    @property
    def marker(self) -> str:
        return f"{self._tag}:marker"

    @property
    def newest(self) -> str:
        """A hint where to begin to look."""
        return f"{self._tag}:newest"

    def founding(self, session: int) -> str:
        """What the first rank to come laid down."""
        return f"{self._tag}:{session}:founding"

    def end(self, session: int) -> str:
        """Why the session is over, by whoever said so first."""
        return f"{self._tag}:{session}:end"

    def lease(self, generation: int, nonce: str) -> str:
        """Of one process: what it says of itself while it lives."""
        return f"{GenerationKeys(self.job_id, generation).prefix}lease:{nonce}"
