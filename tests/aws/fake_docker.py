"""A ``docker`` that keeps what it is asked, and builds nothing: the contexts stay as they are.

What is pushed is made known to the registry, as a real push would.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_DOCKER"])
verb, *words = sys.argv[1:]
given = sys.stdin.read()
with (HOME / "calls.jsonl").open("a") as log:
    plain = os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS")
    log.write(json.dumps({"verb": verb, "words": words, "stdin": given, "plain": plain}) + "\n")
fault = HOME / "fault"
if fault.exists():
    failing, _, words_of_it = fault.read_text().partition(" ")
    if failing == verb and words_of_it == "hang":
        (HOME / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if failing == verb:
        print(f"step 1\n{words_of_it}", file=sys.stderr)
        sys.exit(1)
if verb == "build":
    tag = words[words.index("--tag") + 1].rpartition(":")[2]
    shutil.copytree(words[-1], HOME / "images" / tag, dirs_exist_ok=True)
if verb == "push":
    import boto3

    repository, _, tag = words[0].partition("/")[2].rpartition(":")
    manifest = {"schemaVersion": 2, "config": {"digest": f"sha256:{tag:0>64}"}, "layers": []}
    boto3.client("ecr").put_image(
        repositoryName=repository,
        imageTag=tag,
        imageManifest=json.dumps(manifest),
        imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
    )
