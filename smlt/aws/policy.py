"""What the functions may do: their own bucket prefix and log groups, and what else they need."""

from __future__ import annotations

from typing import Any

from smlt.aws.release import Release
from smlt.io.s3_address import S3Address
from smlt.io.secret import SecretAddress
from smlt.io.server_address import ServerAddress, server_urls

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "lambda.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}
_INTERFACES = (
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
    "ec2:DescribeSubnets",
)


def permissions(release: Release, account: str, partition: str, region: str) -> dict[str, Any]:
    """Return the policy of the functions' role, the least that they can work with."""
    place = f"{partition}:%s:{region}:{account}"
    groups = f"arn:{place % 'logs'}:log-group:/aws/lambda/{release.function_prefix}*:*"
    statements = [_allow(["logs:CreateLogStream", "logs:PutLogEvents"], [groups])]
    buckets = [release.objects]
    if release.parameters.startswith("s3://"):
        buckets.append(release.parameters)
    for url in dict.fromkeys(buckets):
        statements += _bucket(S3Address.parse(url), partition, place)
    for secret in _secrets(release.parameters):
        statements.append(_allow([secret.action], [secret.arn(place)]))
    if release.efs is not None:
        mount = _allow(["elasticfilesystem:ClientMount"], ["*"])  # and no ClientWrite
        mount["Condition"] = {"StringEquals": {"elasticfilesystem:AccessPointArn": [release.efs]}}
        statements.append(mount)
    if release.subnets:
        # Lambda itself makes the interfaces, by this role; the code that runs by it may not.
        functions = f"arn:{place % 'lambda'}:function:{release.function_prefix}*"
        statements.append(_allow(list(_INTERFACES), ["*"]))
        statements.append(
            {
                "Effect": "Deny",
                "Action": list(_INTERFACES),
                "Resource": ["*"],
                "Condition": {"ArnLike": {"lambda:SourceFunctionArn": [functions]}},
            }
        )
    return {"Version": "2012-10-17", "Statement": statements}


def _bucket(address: S3Address, partition: str, place: str) -> list[dict[str, Any]]:
    if address.is_directory_bucket:
        bucket = f"arn:{place % 's3express'}:bucket/{address.bucket}"
        return [_allow(["s3express:CreateSession"], [bucket])]
    bucket = f"arn:{partition}:s3:::{address.bucket}"
    below = f"{address.prefix}/*" if address.prefix else "*"
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    listing = _allow(["s3:ListBucket"], [bucket])
    if address.prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [below]}}
    return [_allow(objects, [f"{bucket}/{below}"]), listing]


def _secrets(parameters: str) -> list[SecretAddress]:
    if parameters.startswith("s3://"):
        return []
    servers = [ServerAddress.parse(url) for url in server_urls(parameters)]
    return [secret for server in servers if (secret := server.secret) and secret.action]


def _allow(actions: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resources}
