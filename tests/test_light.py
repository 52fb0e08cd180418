"""The verifier and the loss on their own: what an environment needs that has little else."""
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Python runs a module of this name at each start, in the verifier's workers too
BLOCKER = '''
import sys

ALLOWED = {allowed!r} | sys.stdlib_module_names

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
'''


def spelled(distribution):
    "The name of a distribution in one spelling."
    return re.sub(r"[-_.]+", "-", distribution).lower()


def installed_files(distribution):
    "The files of a distribution, none of one that is not installed."
    try:
        return files(distribution) or ()
    except PackageNotFoundError:
        return ()


def needs(distribution):
    "What a distribution asks for, extras apart; nothing of one that is not installed."
    try:
        lines = requires(distribution) or ()
    except PackageNotFoundError:    # asked for on other systems or by older Pythons alone
        return []
    return [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]


def modules_of(distributions):
    "The names under which distributions and all that pip installs with them are imported."
    found = {}
    waiting = list(distributions)
    while waiting:
        name = spelled(waiting.pop())
        if name not in found:
            found[name] = {path.parts[0].partition(".")[0] for path in installed_files(name)}
            waiting += needs(name)
    return set().union(*found.values())


@pytest.fixture
def run_with(tmp_path):
    "run_with(distributions, code): what code prints where nothing else is installed."
    def run(distributions, code):
        allowed = modules_of(distributions) | {"calibrl", "coverage"}
        (tmp_path/"sitecustomize.py").write_text(BLOCKER.format(allowed=allowed))
        paths = os.pathsep.join((str(tmp_path), str(ROOT)))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              timeout=120, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths})
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]
    return run


def documented():
    "What the README installs beside the package for the verifier alone."
    lines = (ROOT/"README.md").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("pip install --no-deps . "))
    return line.partition("&& pip install ")[2].partition("#")[0].split()


JUDGED = r"""
from calibrl.tasks import score
for answer, truth in [("0.5", "1/2"), (r"\int_0^1 x\,dx", r"\frac{1}{2}")]:
    verdict = score(f"<think>so</think><answer>{answer}</answer>", truth)
    print(verdict.correct, verdict.how)
"""


def test_the_documented_line_is_all_that_the_verifier_needs(run_with):
    out = run_with(documented(), JUDGED)
    assert out.splitlines() == ["True rules: value", "True judge: Math-Verify"]


def test_the_blocker_blocks(run_with):
    out = run_with([], JUDGED)
    assert out.splitlines()[:1] == ["True rules: value"] and "Math-Verify" not in out
    assert run_with(documented(), "import transformers") == (
        "ModuleNotFoundError: No module named 'transformers'")


def test_the_loss_needs_torch_and_fastcore(run_with):
    code = "from calibrl.loss import OBJECTIVES; print('calibrl' in OBJECTIVES)"
    assert run_with(["torch", "fastcore"], code) == "True"
