"""Anomalies: rows that a density finds unlikely, how sure that is, and what they have in common."""
