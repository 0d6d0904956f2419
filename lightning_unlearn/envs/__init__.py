"""Environments, stepped E at a time, and the concepts that they report."""

import importlib
import os

if (_gl := os.environ.get("MUJOCO_GL")) is not None:
    try:
        importlib.import_module("mujoco")
    except Exception:  # PyOpenGL has many; stepping needs no GL, and `evaluate` says why it cannot render
        os.environ["MUJOCO_GL"] = "disable"
        try:
            importlib.import_module("mujoco")
        finally:
            os.environ["MUJOCO_GL"] = _gl
