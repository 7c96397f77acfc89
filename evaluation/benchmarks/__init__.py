"""The benchmarks: importing this package registers all of them."""

from evaluation.benchmarks import (
    bbc as bbc,
    boolq as boolq,
    polarity as polarity,
    sms as sms,
    trec as trec,
    valence as valence,
)
from evaluation.benchmarks.base import (
    Benchmark as Benchmark,
    Example as Example,
    cards as cards,
    load_benchmark as load_benchmark,
    names as names,
    register_benchmark as register_benchmark,
)
