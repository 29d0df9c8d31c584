"""Rates of what a job uses, from a dated table that a user may override entry by entry."""

from __future__ import annotations

import datetime
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from smlt.errors import ConfigError

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Prices:
    """Rates in US dollars, of one region on one day."""

    region: str
    as_of: datetime.date
    sources: tuple[str, ...]
    rates: Mapping[str, Any]
    """Tables of tables by service, as in the file."""

    def rate(self, *path: str) -> float:
        """Return one rate, such as ``rate("lambda", "per_request")``.

        Raises:
            ConfigError: the table has no such rate for this region.
        """
        found: Any = self.rates
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            where = ".".join((self.region, *path))
            raise ConfigError(
                f"there is no price of {where}: write it into a file and give that with --prices."
            )
        return float(found)

    def knows(self, *path: str) -> bool:
        """Whether the table has an entry at that path."""
        found: Any = self.rates
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found is not None


@cache
def read_prices(path: Path | None = None, region: str = REGION) -> Prices:
    """Read the table that comes with the package, with a file's entries put over it.

    Raises:
        ConfigError: the file cannot be read, a rate is no number of dollars, or the region is
            unknown.
    """
    text = (files("smlt.control") / "prices.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    if path is not None:
        table = _over(table, _read(path))
    as_of, sources = table.pop("as_of"), table.pop("sources")
    if not isinstance(as_of, datetime.date):
        raise ConfigError(f"{path}: as_of is {as_of!r}: write a date, as in 2026-11-22.")
    if region not in table:
        raise ConfigError(
            f"there are no prices of the region {region}; there are those of "
            f"{', '.join(sorted(table))}. Write its own into a file and give that with --prices."
        )
    rates = table[region]
    if "same_as" in rates:
        same = table.get(rates["same_as"], {})
        rates = _over(same, {k: v for k, v in rates.items() if k != "same_as"})
    return Prices(region, as_of, tuple(sources), rates)


def prices_of(region: str, path: Path | None = None) -> Prices:
    """Return the prices of a region, or those of us-east-1 where the table has none of it."""
    try:
        return read_prices(path, region)
    except ConfigError:
        return read_prices(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the prices {path} cannot be read: {exc}.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"the prices {path} are not valid TOML: {exc}.") from exc
    for name, value in given.items():
        if isinstance(value, Mapping):
            _check(value, f"{path}: {name}")
        elif name not in ("as_of", "sources"):
            raise ConfigError(
                f"{path}: {name} is out of place: rates stand in tables by region, "
                "as in [us-east-1.lambda]."
            )
    return given


def _check(rates: Mapping[str, Any], where: str) -> None:
    for name, value in rates.items():
        if isinstance(value, Mapping):
            _check(value, f"{where}.{name}")
        elif name != "same_as" and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise ConfigError(f"{where}.{name} is {value!r}: give a number of dollars.")


def _over(table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Put the entries of one table of tables over those of another."""
    joined = dict(table)
    for name, value in given.items():
        below = joined.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = _over(below, value)
        joined[name] = value
    return joined
