"""Variational inference: a density is fitted to another that is known up to a constant."""
