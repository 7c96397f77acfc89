"""Several results folders, one a benchmark, become one report: what holds across tasks, and what cannot be said."""

from reports.across.folders import Across as Across, across as across, refuse_runs as refuse_runs
from reports.across.write import write_across as write_across
