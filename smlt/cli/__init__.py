"""The command line: ``smlt train``, ``smlt status``, ``smlt logs``, ``smlt version``."""

from smlt.cli.app import app, main

__all__ = ["app", "main"]
