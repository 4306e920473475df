"""The laboratory: one HTML page that computes U-turns in the browser. `uturn.lab.server` adds U-turns of images to it."""

from uturn.lab.page import MODULES, laboratory, script, write_laboratory

__all__ = ["MODULES", "laboratory", "script", "write_laboratory"]
