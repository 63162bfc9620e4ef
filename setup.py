"""Where the packages live: kernels/, passes/ and targets/ install under zoomc.

A bare top-level ``kernels`` would shadow the package of that name which transformers looks for,
so nothing but ``zoomc`` may land in site-packages. Everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

MAPPED = ("kernels", "passes", "targets")

setup(
    packages=find_packages(include=["zoomc", "zoomc.*"])
    + [
        f"zoomc.{name}"
        for folder in MAPPED
        for name in (folder, *(f"{folder}.{p}" for p in find_packages(folder)))
    ],
    package_dir={f"zoomc.{folder}": folder for folder in MAPPED},
    include_package_data=False,  # of data, what package_data names; setuptools warns of any other
    package_data={
        "zoomc": ["py.typed", "assets/**/*"],
        "zoomc.targets.tvm.npu": ["machines/*.toml"],
    },
)
