"""The core: U-turns, the experiment, the four protocols, random streams, progress. It imports no
part.
"""
