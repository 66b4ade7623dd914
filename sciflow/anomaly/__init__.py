"""Anomaly detection in three separate steps: score, calibrate, decide."""
