"""Tools that stand on a run, a study and a page: one folder each, which declares what it adds
(`uturn.core.tools.Tool`).

Nothing in the package imports a tool but `uturn.core.tools`, and no tool imports another.
"""
