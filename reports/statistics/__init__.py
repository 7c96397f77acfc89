"""Statistics of few seeds: intervals, verdicts, when to stop adding seeds, searches, and comparisons across tasks.

Pure functions of plain numbers. Nothing here knows records or tables, and importing it takes numpy and scipy.special
only, so that whoever runs a comparison can use it as well as whoever reports one.
"""

from reports.statistics.across import (
    improvement_interval as improvement_interval,
    interquartile_interval as interquartile_interval,
    interquartile_mean as interquartile_mean,
    performance_profile as performance_profile,
    probability_of_improvement as probability_of_improvement,
    score_profile as score_profile,
    time_to_target as time_to_target,
)
from reports.statistics.bootstrap import (
    ENOUGH as ENOUGH,
    interval_over_tasks as interval_over_tasks,
    stratified_bootstrap as stratified_bootstrap,
)
from reports.statistics.estimates import (
    LEVEL as LEVEL,
    Difference as Difference,
    Estimate as Estimate,
    Outcomes as Outcomes,
    mean_interval as mean_interval,
    mean_over_tasks as mean_over_tasks,
    paired_difference as paired_difference,
)
from reports.statistics.forecast import (
    decision_power as decision_power,
    more_seeds as more_seeds,
)
from reports.statistics.items import (
    ItemDifference as ItemDifference,
    paired_items as paired_items,
)
from reports.statistics.proportions import (
    Bounded as Bounded,
    paired_proportions as paired_proportions,
)
from reports.statistics.racing import (
    promoted as promoted,
    rung_sizes as rung_sizes,
    rung_steps as rung_steps,
    share_of_steps as share_of_steps,
)
from reports.statistics.ranks import (
    CriticalDifference as CriticalDifference,
    Refusal as Refusal,
    critical_difference as critical_difference,
    fewest_tasks as fewest_tasks,
    signed_rank_p as signed_rank_p,
    task_ranks as task_ranks,
)
from reports.statistics.search import (
    RateWindow as RateWindow,
    expected_best as expected_best,
    expected_best_after as expected_best_after,
    rate_window as rate_window,
)
from reports.statistics.sequential import (
    Looks as Looks,
    look_level as look_level,
    planned_looks as planned_looks,
    sequential_decision as sequential_decision,
)
from reports.statistics.times import (
    MedianTime as MedianTime,
    median_time as median_time,
)
from reports.statistics.verdicts import (
    MARGIN as MARGIN,
    VERDICTS as VERDICTS,
    Comparison as Comparison,
    Pair as Pair,
    Verdict as Verdict,
    all_pairs as all_pairs,
    beats as beats,
    best_beyond_interval as best_beyond_interval,
    compare_with as compare_with,
    equivalence_p as equivalence_p,
    holm as holm,
    verdict as verdict,
)
