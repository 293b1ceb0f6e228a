"""Maps the rooms at the repository root into the `edgewright` namespace."""

from setuptools import find_packages, setup

ROOMS = ("artifacts", "custom_ops", "model", "export", "runtime", "cli")
found = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])

setup(
    packages=[f"edgewright.{name}" for name in found],
    package_dir={f"edgewright.{room}": room for room in ROOMS},
)
