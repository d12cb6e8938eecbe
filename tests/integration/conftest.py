"""What the tests of `serve` stand on: an upstream that is a stub, and a routing whose decisions are known."""

from collections.abc import Iterator

import pytest

from apportion.serve import Routing
from tests.integration.upstream_stub import Stub, upstream
from tests.routings import knowing_router, routing


@pytest.fixture
def stub() -> Iterator[Stub]:
    with upstream() as found:
        yield found


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Routing:
    return routing(tmp_path_factory.mktemp("routing"), knowing_router())
