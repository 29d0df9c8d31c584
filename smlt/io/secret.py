"""Passwords by reference: where one is kept, and never what it is, stands in URLs and payloads."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from smlt.config.aws import aws_region, secret_variable
from smlt.errors import ConfigError

_KEEPERS = {
    "secretsmanager": "secretsmanager:GetSecretValue",
    "ssm": "ssm:GetParameter",
    "env": "",
}
_CONNECT_S, _READ_S = 5, 10


@dataclass(frozen=True, slots=True)
class SecretAddress:
    """``secretsmanager:NAME-or-ARN``, ``ssm:/NAME`` or ``env:VARIABLE``."""

    keeper: str
    name: str

    @classmethod
    def parse(cls, text: str) -> SecretAddress:
        """Take a reference apart.

        Raises:
            ConfigError: it is none.
        """
        keeper, _, name = text.partition(":")
        if keeper not in _KEEPERS or not name:
            raise ConfigError(
                f"password_from={text} names no secret: write secretsmanager:NAME, ssm:/NAME or "
                "env:VARIABLE"
            )
        return cls(keeper, name)

    @property
    def action(self) -> str:
        """What a role must be allowed to do to read it; empty for a variable."""
        return _KEEPERS[self.keeper]

    def arn(self, place: str) -> str:
        """Return what a policy calls it; ``place`` is ``aws:%s:region:account``."""
        if self.name.startswith("arn:"):
            return self.name
        if self.keeper == "ssm":
            return f"arn:{place % 'ssm'}:parameter/{self.name.lstrip('/')}"
        # Secrets Manager adds six characters of its own.
        return f"arn:{place % 'secretsmanager'}:secret:{self.name}-??????"

    def read(self) -> str:
        """Fetch the secret. Blocks for as long as its keeper takes, 15 s at most each attempt.

        Raises:
            ConfigError: it cannot be had.
        """
        if self.keeper == "env":
            value = secret_variable(self.name)
            if value is None:
                raise ConfigError(f"the password is to stand in {self.name}, which is not set")
            return value
        boto3, exceptions = import_module("boto3"), import_module("botocore.exceptions")
        config = import_module("botocore.config").Config(
            connect_timeout=_CONNECT_S, read_timeout=_READ_S
        )
        try:
            client: Any = boto3.client(self.keeper, region_name=aws_region(), config=config)
            if self.keeper == "ssm":
                found = client.get_parameter(Name=self.name, WithDecryption=True)
                return str(found["Parameter"]["Value"])
            return str(client.get_secret_value(SecretId=self.name)["SecretString"])
        except (exceptions.BotoCoreError, exceptions.ClientError) as exc:
            raise ConfigError(
                f"the password cannot be read from {self.keeper}:{self.name}: {exc}; "
                f"{self.action} must be allowed, and the service be reachable"
            ) from exc
