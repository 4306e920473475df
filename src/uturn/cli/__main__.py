"""`python -m uturn.cli`."""

from uturn.cli import program

program()
