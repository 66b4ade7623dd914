"""Figures of anomalies: where they are, why, and whether their p-values can be trusted."""
