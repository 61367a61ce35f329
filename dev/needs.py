"""Packages of Python that scripts in dev/ need, from this Python or from dev/.venv."""
import importlib.util
import os
import pathlib
import sys


optional = set()  # packages without which the script that is running does less


def need(package, target="plot-env"):
    """Starts the script again with dev/.venv's Python if this one lacks the package; ends with one line if there is none."""
    if importlib.util.find_spec(package):
        return
    environment = pathlib.Path(__file__).resolve().parent / ".venv"
    python = environment / "bin/python"
    if python.exists() and pathlib.Path(sys.prefix).resolve() != environment.resolve():
        os.execv(python, [str(python), *sys.orig_argv[1:]])
    if package in optional:
        return
    sys.exit(f"{sys.argv[0]}: expected the Python package {package}, found none; make {target} installs it")
