"""The user's own Docker: builds an image and pushes it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from smlt.errors import CloudError, ConfigError

_BUILD_S = 1800.0
_PUSH_S = 3600.0
_LOGIN_S = 60.0
# A list of images with statements about how they were built is none that Lambda takes.
_PLAIN = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


class Docker:
    """Docker's command line; what it says of a failure is repeated in its last line."""

    def __init__(self) -> None:
        found = shutil.which("docker")
        if found is None:
            raise ConfigError(
                "a container image is built by Docker, and there is no docker on PATH: install it, "
                "or deploy without --image"
            )
        self._program = found

    async def build(self, context: Path, name: str, platform: str) -> None:
        """Build a folder's Dockerfile into an image of that name."""
        options = ["--platform", platform, "--tag", name, str(context)]
        await self._run("build", *options, limit_s=_BUILD_S)

    async def login(self, registry: str, user: str, password: str) -> None:
        """Log in; the password goes by standard input, where no list of processes shows it."""
        options = ["--username", user, "--password-stdin", registry]
        await self._run("login", *options, limit_s=_LOGIN_S, given=password)

    async def push(self, name: str) -> None:
        """Push an image to the registry that its name begins with."""
        await self._run("push", name, limit_s=_PUSH_S)

    async def _run(self, *words: str, limit_s: float, given: str = "") -> None:
        process = await asyncio.create_subprocess_exec(
            self._program,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | _PLAIN,
        )
        try:
            async with asyncio.timeout(limit_s):
                said, _ = await process.communicate(given.encode())
        except TimeoutError:
            raise CloudError(f"docker {words[0]} did not end within {limit_s:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            raise CloudError(f"docker {words[0]} failed: {' '.join(last) or process.returncode}")
