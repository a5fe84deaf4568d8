"""The reduction of a micro-batch runs beside the next forward, and is there when its batch ends."""

import threading

import pytest

from realad_verl.data.parallel import Overlap


def test_a_reduction_runs_while_the_next_forward_does():
    overlap, forward_runs, outputs = Overlap(), threading.Event(), [{"log_probs": 1}, {"log_probs": 2}]

    def first() -> dict:
        assert forward_runs.wait(10), "the next forward never began: submit waited for the reduction"
        return {"evidence": "a"}

    overlap.expect(5)
    overlap.submit(2, outputs[0], first)
    forward_runs.set()
    overlap.submit(3, outputs[1], lambda: {"evidence": "b"})
    assert outputs == [{"log_probs": 1, "evidence": "a"}, {"log_probs": 2, "evidence": "b"}]


def test_results_are_in_place_where_no_batch_was_announced():
    output: dict = {}
    Overlap().submit(4, output, lambda: {"evidence": 1})
    assert output == {"evidence": 1}


def test_an_error_ends_the_step_and_leaves_nothing_for_the_next():
    overlap, output = Overlap(), {}

    def fails() -> dict:
        raise ValueError("rows of another length")

    overlap.expect(2)
    overlap.submit(1, {}, fails)
    with pytest.raises(ValueError, match="rows of another length"):
        overlap.submit(1, {}, dict)
    overlap.expect(2)
    overlap.submit(1, {}, fails)  # the forward after it fails: nobody collects this one
    overlap.expect(1)
    overlap.submit(1, output, lambda: {"evidence": 1})
    assert output == {"evidence": 1}
