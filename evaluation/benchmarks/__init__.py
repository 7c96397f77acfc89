"""The benchmarks: importing this package registers all of them."""

from evaluation.benchmarks import polarity as polarity, trec as trec
from evaluation.benchmarks.base import (
    Benchmark as Benchmark,
    Example as Example,
    load_benchmark as load_benchmark,
    names as names,
    register_benchmark as register_benchmark,
)
