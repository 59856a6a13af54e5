"""A plugin for pytest: notes which tests were skipped, and can refuse those that are skipped for want of an extra.

LSSEG_SKIPS names the file that the tests are noted in; with LSSEG_EXTRAS=all no skip may name an extra.
"""

import os
from pathlib import Path

skipped = []


def pytest_runtest_logreport(report):
    """Note a skipped test with its reason."""
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped.append((report.nodeid, str(report.longrepr[2]) if report.longrepr else ""))


def pytest_sessionfinish(session):
    """Write the notes; fail where an extra was missing that should be there."""
    if hasattr(session.config, "workerinput"):  # of xdist: what it reports arrives in the main process
        return
    if name := os.environ.get("LSSEG_SKIPS"):
        Path(name).write_text("".join(f"{nodeid}\n" for nodeid, _ in skipped))
    missing = [f"{nodeid}: {reason}" for nodeid, reason in skipped if "needs the extra" in reason]
    if os.environ.get("LSSEG_EXTRAS") == "all" and missing:
        print("\nskipped for want of an extra:", *missing, sep="\n")
        session.exitstatus = 1
