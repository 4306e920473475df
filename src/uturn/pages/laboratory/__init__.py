"""The laboratory: one HTML page that computes U-turns in the browser. `server.py` adds U-turns of images to it."""

from uturn.pages.laboratory.page import MODULES, laboratory, script, write_laboratory

__all__ = ["MODULES", "laboratory", "script", "write_laboratory"]
