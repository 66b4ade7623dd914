"""Anomalies, in three separate steps: score, calibrate, decide; then why, and what belongs together."""

from sciflow.anomaly.calibration import Calibration, PValues
from sciflow.anomaly.decision import Decision, decide
from sciflow.anomaly.detection import Detection
from sciflow.anomaly.detector import Detector
from sciflow.anomaly.drift import Drift, drift
from sciflow.anomaly.events import merge_events, write_events
from sciflow.anomaly.online import LORD, SAFFRON
from sciflow.anomaly.page import write_detection_page

__all__ = [
    "LORD",
    "SAFFRON",
    "Calibration",
    "Decision",
    "Detection",
    "Detector",
    "Drift",
    "PValues",
    "decide",
    "drift",
    "merge_events",
    "write_detection_page",
    "write_events",
]
