import platform

import torch

from smlt.control.job_settings import function_environment
from smlt.worker import numerics


def test_host_is_described_as_torch_and_python_see_it():
    here = numerics.of_this_host()
    assert here["architecture"] == platform.machine()
    assert here["torch threads"] == torch.get_num_threads()
    assert numerics.difference(here, here) == ""


def test_difference_names_what_is_not_alike_and_ignores_what_only_one_knows():
    began = {"architecture": "x86_64", "torch threads": 1}
    assert numerics.difference(began, {"architecture": "aarch64"}) == (
        "architecture aarch64 instead of x86_64"
    )
    assert numerics.difference({"architecture": "x86_64"}, began) == ""


def test_threads_follow_the_memory_unless_the_job_has_its_own():
    assert function_environment(1769 * 3)["OMP_NUM_THREADS"] == "3"
    assert function_environment(128)["MKL_NUM_THREADS"] == "1"
    assert function_environment(128, threads=4)["OPENBLAS_NUM_THREADS"] == "4"
