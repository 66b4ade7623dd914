"""Pictures of a run, and the one page that holds them. matplotlib is imported when a picture is drawn, not before."""

from sciflow.report.page import Section, Table, write_page
from sciflow.report.pairs import corner
from sciflow.report.plots import log_prob_histogram, loss_curve, score_map

__all__ = ["Section", "Table", "corner", "log_prob_histogram", "loss_curve", "score_map", "write_page"]
