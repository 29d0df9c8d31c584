"""The manifest of a checkpoint: what it holds, where its parts are, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smlt.errors import CheckpointError
from smlt.io import exact_json
from smlt.io.state_digest import StateLayout, TensorSpec, combined_digest
from smlt.messages.job import Position

FORMAT = "smlt-checkpoint"
VERSION = 1


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One stored part: its key, its size, and the SHA-256 of each leaf that it holds."""

    key: str
    nbytes: int
    leaves: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A committed checkpoint, all but the tensors' bytes."""

    job_id: str
    position: Position
    parent: Position | None
    layout: StateLayout
    parts: tuple[PartInfo, ...]
    scalars: dict[str, Any]
    digest: str
    """``sha256:…`` of tensors and scalars, as ``state_digest`` computes it."""
    info: dict[str, Any]
    """What else the writer wants to be known, such as host properties; no part of the digest."""

    @property
    def leaves(self) -> tuple[str, ...]:
        return tuple(digest for part in self.parts for digest in part.leaves)

    def to_json(self) -> bytes:
        document = {
            "format": FORMAT,
            "version": VERSION,
            "job": self.job_id,
            "generation": self.position.generation,
            "step": self.position.step,
            "parent": self.parent and self.parent.to_dict(),
            "digest": self.digest,
            "tensors": [
                {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
                for spec in self.layout.specs
            ],
            "parts": [
                {"key": part.key, "bytes": part.nbytes, "leaves": list(part.leaves)}
                for part in self.parts
            ],
            "scalars": exact_json.encoded(self.scalars),
            "info": exact_json.encoded(self.info),
        }
        document["checksum"] = _checksum(document)
        return json.dumps(document, indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes, key: str) -> Manifest:
        """Read a manifest and verify that its digests fit together.

        Raises:
            CheckpointError: it is damaged, or of another version; ``key`` names it.
        """
        try:
            document = json.loads(text)
            version = document["version"] if document["format"] == FORMAT else None
        except (ValueError, KeyError, TypeError) as exc:
            raise CheckpointError(f"{key} is no checkpoint manifest: {exc}") from exc
        if version != VERSION:
            raise CheckpointError(
                f"{key} is a checkpoint of version {version}, and this smlt reads version"
                f" {VERSION}: use the smlt that wrote it"
            )
        try:
            _verify_text(document)
            manifest = cls._from_document(document)
            _verify(manifest)
        except (ValueError, KeyError, TypeError, AttributeError, CheckpointError) as exc:
            raise CheckpointError(f"{key} is damaged: {exc}") from exc
        return manifest

    @classmethod
    def _from_document(cls, document: Mapping[str, Any]) -> Manifest:
        parent = document["parent"]
        return cls(
            job_id=document["job"],
            position=Position(generation=document["generation"], step=document["step"]),
            parent=None if parent is None else Position.from_dict(parent),
            layout=StateLayout(
                tuple(
                    TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"]))
                    for spec in document["tensors"]
                )
            ),
            parts=tuple(
                PartInfo(part["key"], part["bytes"], tuple(part["leaves"]))
                for part in document["parts"]
            ),
            scalars=exact_json.decoded(document["scalars"]),
            digest=document["digest"],
            info=exact_json.decoded(document["info"]),
        )


def _verify(manifest: Manifest) -> None:
    layout, parts = manifest.layout, manifest.parts
    fits = all(len(p.leaves) == len(layout.part(i, len(parts))) for i, p in enumerate(parts))
    if not fits or combined_digest(layout, manifest.leaves, manifest.scalars) != manifest.digest:
        raise CheckpointError("its digest is not that of its tensors and scalars")


def _verify_text(document: dict[str, Any]) -> None:
    checksum = document.pop("checksum", None)  # the first manifests of this version had none
    if checksum not in (None, _checksum(document)):
        raise CheckpointError("its checksum is another one")


def _checksum(document: Mapping[str, Any]) -> str:
    """Of all that a manifest says: the digest is that of the state alone."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
