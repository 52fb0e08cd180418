"""Shared fixtures: the embedded policy, and tiny random checkpoints of every architecture."""
import functools
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"          # no test may reach for the network
os.environ["CALIBRL_VERDICTS"] = "off"      # each process tries its models anew, whatever is cached
import matplotlib

matplotlib.use("Agg")
import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Return who gets which test with `-n`. A file whose tests share what their module makes goes
    to one worker, which makes it once. Such files come first, the larger before the smaller, and
    all other tests, one by one, fill the gaps, so that the workers end together."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def shares(file):
        return 'scope="module"' in (config.rootpath/file).read_text(encoding="utf-8")

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return file if shares(file) else nodeid

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny():
    "The folder of the embedded checkpoint."
    from calibrl.geometry import tiny_checkpoint
    return tiny_checkpoint()


@pytest.fixture
def policy(tiny):
    "A fresh 4-bit policy with a LoRA adapter."
    from calibrl.rollout import Policy
    return Policy.from_pretrained(tiny, bits=4, lora_rank=16)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    "checkpoint(kind): the folder of a tiny random checkpoint of an architecture, made once."
    from tiny_models import make
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = make(kind, tmp_path_factory.mktemp(kind))
        return made[kind]
    return folder


@pytest.fixture(scope="session")
def table_cache(tmp_path_factory):
    "Tables that `datasets` writes on the way go to a folder of this run."
    import datasets
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("tables")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = usual
