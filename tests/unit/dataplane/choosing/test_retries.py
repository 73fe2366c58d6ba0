from __future__ import annotations

from gpustack.dataplane.choosing import RetryBudget


def test_a_fifth_of_the_requests_may_be_tried_again() -> None:
    budget = RetryBudget(lambda: 0.0, per_second=0.0, burst=10.0)
    retried = 0
    for _ in range(1000):
        budget.request()
        retried += budget.retry()

    assert 200 <= retried <= 211
    assert budget.refused == 1000 - retried


def test_a_gateway_with_little_to_do_may_try_a_few_each_second() -> None:
    now = 0.0
    budget = RetryBudget(lambda: now, burst=3.0)
    assert [budget.retry() for _ in range(4)] == [True, True, True, False]
    now = 1.0

    assert [budget.retry() for _ in range(4)] == [True, True, True, False]


def test_what_is_not_spent_is_not_kept_for_ever() -> None:
    now = 0.0
    budget = RetryBudget(lambda: now, burst=5.0)
    for _ in range(1000):
        budget.request()
    now = 1000.0

    assert sum(budget.retry() for _ in range(100)) == 5
