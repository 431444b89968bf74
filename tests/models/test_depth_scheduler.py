"""The scheduler of continuous depth batching alone: what it promises, without a model."""

import random

import pytest

from hf_loop.models.depth_scheduler import DepthScheduler


NUM_LOOPS, NUM_TOKENS = 6, 5


def serve(num_requests: int, max_batch_rows: int, max_sequences: int, seed: int = 0) -> dict:
    """Run requests with random exits and lengths; return steps, the loops run, and how long any row waited."""
    draw = random.Random(seed)
    scheduler = DepthScheduler(num_requests, max_batch_rows, max_sequences)
    left, requests, last_run, steps, longest = {}, {}, {}, [], 0
    exits, ended = {}, []
    loops_drawn = 0
    while True:
        for request, row in scheduler.admit():
            requests[row], left[row], last_run[row] = request, draw.randint(1, NUM_TOKENS), len(steps)
        in_flight = len(requests)
        step = scheduler.next_step()
        if step is None:
            break
        steps.append((*step, in_flight))
        for row in step.rows:
            longest = max(longest, len(steps) - last_run[row])
            last_run[row] = len(steps)
        if step.is_loop:
            for row in step.rows:
                exits[row] -= 1
            scheduler.after_loop(step.rows, [exits[row] == 0 for row in step.rows])
            continue
        ends = []
        for row in step.rows:
            left[row] -= 1
            ends.append(left[row] < 0)
            if ends[-1]:
                ended.append(requests.pop(row))
            else:
                exits[row] = draw.randint(1, NUM_LOOPS)
                loops_drawn += exits[row]
        scheduler.after_token(step.rows, ends)
    return {"steps": steps, "longest": longest, "ended": ended, "loops": loops_drawn}


@pytest.mark.parametrize(("num_requests", "max_batch_rows", "max_sequences"), [(1, 4, 1), (9, 4, 4), (40, 4, 7)])
@pytest.mark.parametrize("seed", range(3))
def test_everything_runs_once_and_nobody_starves(num_requests, max_batch_rows, max_sequences, seed):
    served = serve(num_requests, max_batch_rows, max_sequences, seed)
    assert sorted(served["ended"]) == list(range(num_requests))
    assert sum(len(rows) for is_loop, rows, _ in served["steps"] if is_loop) == served["loops"]
    assert all(len(set(rows)) == len(rows) <= max_batch_rows for _, rows, _ in served["steps"])
    # a row waits at most until all others have come to the end of their token
    assert served["longest"] <= max_sequences * NUM_LOOPS + 1


@pytest.mark.parametrize("seed", range(3))
def test_every_call_is_full_with_two_batches_in_flight(seed):
    served = serve(60, 4, 7, seed)
    full = [len(rows) == 4 for _, rows, in_flight in served["steps"] if in_flight == 7]
    assert len(full) > 100 and all(full)


def test_the_longer_queue_runs_and_its_first_rows():
    scheduler = DepthScheduler(num_requests=3, max_batch_rows=2, max_sequences=3)
    assert scheduler.admit() == [(0, 0), (1, 1), (2, 2)] and scheduler.admit() == []
    assert scheduler.next_step() == (False, [0, 1])
    scheduler.after_token([0, 1], [False, False])
    assert scheduler.next_step() == (True, [0, 1])
    scheduler.after_loop([0, 1], [False, True])
    assert scheduler.next_step() == (False, [2, 1])
    scheduler.after_token([2, 1], [True, False])
    assert scheduler.next_step() == (True, [0, 1])


def test_prompts_wait_for_each_other():
    scheduler = DepthScheduler(num_requests=11, max_batch_rows=8, max_sequences=8)
    assert len(scheduler.admit()) == 8
    rows = scheduler.next_step().rows
    scheduler.after_token(rows, [True] + 7 * [False])
    assert scheduler.admit() == []
    rows = scheduler.next_step().rows
    scheduler.after_loop(rows, len(rows) * [True])
    scheduler.after_token(scheduler.next_step().rows, [True] + 6 * [False])
    assert [request for request, _ in scheduler.admit()] == [8, 9]
