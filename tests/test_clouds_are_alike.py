"""Nothing that schedules or trains may ask which cloud it runs on."""

import ast
from pathlib import Path

import pytest

import smlt

HOME = Path(smlt.__file__).parent
FILES = sorted([*(HOME / "control").rglob("*.py"), *(HOME / "worker").rglob("*.py")])
# Words by which a cloud could be told from another.
TELLING = ("embedded", "localhost", "127.0.0.1", "is_local", "platform", "amazonaws", "moto")


def code_of(path):
    """The file's code without its docstrings and comments, which may speak of clouds."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("")
    return ast.unparse(tree)


def test_there_are_files_to_look_at():
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOME)))
def test_no_branch_on_the_cloud(path):
    code = code_of(path).lower()
    assert [word for word in TELLING if word in code] == []


def test_endpoint_is_known_to_the_client_of_the_api_alone():
    knowing = {path.name for path in FILES if "endpoint" in code_of(path).lower()}
    assert knowing == {"lambda_client.py"}
