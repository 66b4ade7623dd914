"""Anomalies: scores of rows, p-values by held-out rows, and decisions with a bound on false alarms."""
