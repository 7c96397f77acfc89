"""Records to words and pictures. Reads plain JSON and never imports torch."""

from reports.across import write_across as write_across
from reports.loading import UnusableResults as UnusableResults, load as load
from reports.records import Results as Results
from reports.write import Report as Report, write_report as write_report
