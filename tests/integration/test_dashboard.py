"""The dashboard: its data, and the page in a real browser where one is installed."""

import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from apportion.serve import Routing
from tests.integration.serving import ASKED, KEY, QUESTION, get, logged, serving
from tests.integration.upstream_stub import Stub

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")  # fmt: skip


def test_data_are_those_after_the_last_seen(stub: Stub, known: Routing) -> None:
    with serving(stub, known) as client:
        client.chat.completions.create(**ASKED)
        first = get(client, "/dashboard/data")[1]
        assert (len(first["decisions"]), first["totals"]["routed"], first["totals"]["drafts_reused"]) == (1, 1, 1)
        client.chat.completions.create(model="rag", messages=QUESTION)
        later = get(client, f"/dashboard/data?after={first['decisions'][0]['id']}")[1]
        assert [one["route"] for one in later["decisions"]] == ["rag"]


def test_the_frontier_says_what_recent_questions_would_take(stub: Stub, known: Routing) -> None:
    with serving(stub, known) as client:
        client.chat.completions.create(**ASKED)
        found = get(client, "/dashboard/frontier")[1]
        at = found["points"][found["current"]]
    assert at["token_weight"] == 0.1
    assert at["shares"]["direct"] == 1.0
    assert at["utility"] == pytest.approx(at["always"]["direct"] + 1.0), "the gate's gain of this router"
    assert found["pipelines"]["rag+cot"]["tokens"] == 500


def test_the_page_needs_no_key_and_nothing_from_outside(stub: Stub, known: Routing) -> None:
    with serving(stub, known, keys=(KEY,)) as client:
        with urllib.request.urlopen(str(client.base_url).removesuffix("v1/"), timeout=10) as answer:
            text = answer.read().decode()
            assert "connect-src 'self'" in answer.headers["content-security-policy"]
        assert get(client, "/dashboard/data", key="")[0] == 401
    assert "src=" not in text.replace("data:", "")
    assert "https://" not in text
    assert "innerHTML" not in text, "what clients send is never markup"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_shows_a_decision_in_a_browser(stub: Stub, known: Routing, tmp_path: Path) -> None:
    with serving(stub, known) as client:
        client.chat.completions.create(**ASKED)
        logged(client)
        url = str(client.base_url).removesuffix("v1/")
        command = [
            str(CHROMIUM),
            *QUIET,
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            url,
        ]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "tiny · drafts measured" in page
    assert "direct" in page.partition('<tbody id="rows">')[2].partition("</tbody>")[0]
    assert "On held-out training questions the router gained 1.000" in page
