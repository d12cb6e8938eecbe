"""What is left in all: told by what was measured of earlier work, and said by every bar."""

import pytest

from apportion.core import progress as bars
from apportion.core.progress import expect, forecast, left_in_all_s, progress, spent_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds on the clock; tests move it."""
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_bars_say_what_is_left_in_all(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with forecast():
        with progress("first", 4, "units") as advance:
            clock[0] += 10
            advance(4)
        assert spent_s("first") == 10
        expect("second", 100)
        expect("third", 3600)
        capsys.readouterr()
        with progress("second", 10, "units") as advance:
            clock[0] += 10
            advance()
        assert capsys.readouterr().err == "second: 1/10 units, 0.1/s, 1m30s left, about 1h01m in all\n"
        assert left_in_all_s() == 90 + 3600  # of the second's 100 seconds 10 have gone
        with progress("second", 1, "units") as advance:
            clock[0] += 500
            advance()
        assert left_in_all_s() == 3600  # later than foreseen is nothing left, not less


def test_outside_a_forecast_nothing_is_foreseen(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    expect("second", 100)
    with progress("second", 10, "units") as advance:
        clock[0] += 10
        advance()
    assert "in all" not in capsys.readouterr().err
    assert left_in_all_s() is None
    assert spent_s("second") == 0
