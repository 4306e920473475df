"""The laboratory: one HTML page that computes U-turns of strings in the browser, and shows U-turns of images."""

from uturn.pages.laboratory.page import MODULES, laboratory, script, write_laboratory

__all__ = ["MODULES", "laboratory", "script", "write_laboratory"]
