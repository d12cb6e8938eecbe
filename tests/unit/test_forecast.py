"""What is left in all: told by what was measured of earlier work, and said by every bar."""

import pytest

from apportion.core import progress as bars
from apportion.core.progress import expect, forecast, progress, spent_s


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
        with progress("fourth", 2, "units") as advance:
            clock[0] += 20
            advance()
        assert capsys.readouterr().err.endswith(", about 1h01m in all\n")  # 20 s, 90 of the second's 100, 3600
        with progress("second", 1, "units") as advance:
            clock[0] += 500
            advance()
        capsys.readouterr()
        with progress("fourth", 2, "units") as advance:
            clock[0] += 30
            advance()
        assert capsys.readouterr().err.endswith(", about 1h00m in all\n")  # later than foreseen is nothing, not less


def test_outside_a_forecast_nothing_is_foreseen(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    expect("second", 100)
    with progress("second", 10, "units") as advance:
        clock[0] += 10
        advance()
    assert "in all" not in capsys.readouterr().err
    assert spent_s("second") == 0
