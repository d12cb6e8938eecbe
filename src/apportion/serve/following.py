"""The router in use: exchanged on disk in one step, and followed by servers that run.

`--router DIR` may be a folder or a link to one. A better router is written beside it and the link is replaced, which
is one rename; the router before it stays where it is. A server looks every few seconds and takes the new one over.
"""

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

from apportion.core.errors import ApportionError, ArtifactMismatchError
from apportion.serve.routing_files import read_router
from apportion.serve.serving import Serving

log = logging.getLogger("apportion.serve")
EVERY_S = 3.0


def successor(router: Path) -> Path:
    """A free name beside the router in use, for the next one.

    >>> successor(Path("/somewhere/router")).name
    'router-1'
    """
    number = 1
    while (found := router.with_name(f"{router.name}-{number}")).exists():
        number += 1
    return found


def exchange(router: Path, new: Path) -> Path:
    """Make `router` name the new folder; returns where the one before it is.

    Both must lie in one folder. A folder that is no link yet is first moved beside itself.

    >>> import tempfile
    >>> home = Path(tempfile.mkdtemp()); (home / "router").mkdir(); (home / "router-1").mkdir()
    >>> exchange(home / "router", home / "router-1").name, os.readlink(home / "router")
    ('router-2', 'router-1')
    """
    if router.is_symlink():
        before = router.parent / os.readlink(router)
    else:
        before = successor(router)
        os.rename(router, before)
    link = router.with_name(f".{router.name}.next")
    link.unlink(missing_ok=True)
    link.symlink_to(new.name)
    os.replace(link, router)
    return before


async def follow(serving: Serving, router: Path) -> None:
    """Take over another router as soon as the path names one; a router of another setup is refused and logged."""
    used = os.path.realpath(router)
    while True:
        await asyncio.sleep(EVERY_S)
        now = os.path.realpath(router)
        if now == used or not os.path.exists(os.path.join(now, "manifest.json")):
            continue
        used = now
        try:
            found = await asyncio.to_thread(read_router, Path(now))
            if dict(found.source) != dict(serving.routing.router.source):
                raise ArtifactMismatchError(f"{now}: was trained for another model, corpus, prompts or k")
            serving.routing = replace(serving.routing, router=found)
            log.info("took over another router", extra={"fields": {"router": now}})
        except ApportionError as error:
            log.error("kept the router in use", extra={"fields": {"router": now, "reason": str(error)}})
