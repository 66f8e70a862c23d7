"""How a client ended, in one sentence."""

from __future__ import annotations

import pytest

from fedlearn.job.phase import Phase


@pytest.mark.parametrize("phase", Phase)
def test_an_end_is_one_sentence_with_its_cause(phase: Phase) -> None:
    if not phase.final:
        with pytest.raises(ValueError, match="has not ended"):
            phase.ended("no memory is left")
        return
    sentence = phase.ended("no memory is left")
    assert sentence.startswith("its client ")
    assert sentence.count(": ") == 1
    assert phase.ended("") == sentence.removesuffix(": no memory is left")
