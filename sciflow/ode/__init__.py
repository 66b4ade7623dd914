"""Ordinary differential equations of many rows at once, and the change of log p along their solutions."""
