"""`python -m uturn.cli`."""

from uturn.cli import main

main()
