"""Posteriors of a simulator, learned once for all observations: one file an idea, put together in ``fit``."""
