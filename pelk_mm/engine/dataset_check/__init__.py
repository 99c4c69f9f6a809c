"""Check a whole data set: files, label maps, objects, classes, duplicates."""

from .check import SplitReport, check_dataset
from .findings import KINDS, Finding
from .report import as_json, count_levels, format_reports

__all__ = [
    'KINDS',
    'Finding',
    'SplitReport',
    'as_json',
    'check_dataset',
    'count_levels',
    'format_reports',
]
