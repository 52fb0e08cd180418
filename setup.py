"""Packaging: every value comes from settings.ini.

`X_requirements` there is the extra `X` here.
"""
from configparser import ConfigParser
from pathlib import Path

import setuptools

root = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(root/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
readme = root/"README.md"
lib = cfg["lib_path"]
END = "_requirements"
extras = {key.removesuffix(END): value.split() for key, value in cfg.items() if key.endswith(END)}
classifiers = ["Development Status :: 3 - Alpha", "Intended Audience :: Developers",
               "Intended Audience :: Science/Research",
               "Topic :: Scientific/Engineering :: Artificial Intelligence", "Framework :: Jupyter"]
classifiers += [f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)]

setuptools.setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"],
    classifiers=classifiers,
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    packages=setuptools.find_packages(include=[lib, lib + ".*"]),
    include_package_data=False,
    package_data={lib: ["assets/**/*"]},
    zip_safe=False,
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": [f'{cfg["lib_name"]}={lib}._modidx:d']},
)
