"""The demonstration behind `make demo`: drawn scenes, a short training, a report."""

from .metric import OccurringIoUMetric

__all__ = ['OccurringIoUMetric']
