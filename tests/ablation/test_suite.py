"""A suite through the real command, each run in a process of its own."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from lsseg.files import read_jsonl

TINY = Path(__file__).parent.parent / "cli" / "tiny.yaml"
ENVIRONMENT = {**os.environ, "COLUMNS": "160"}


def write_suite(tmp_path, **content):
    path = tmp_path / "suite.yaml"
    (tmp_path / "tiny.yaml").write_text(TINY.read_text())
    path.write_text(yaml.safe_dump({"name": "tiny", "base": ["tiny.yaml"], **content}))
    return path


@pytest.fixture
def ablate(lsseg, monkeypatch):
    """The runner in this process; its runs are processes all the same."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*argv):
        return subprocess.CompletedProcess(argv, *lsseg(*argv))

    return run


VARIANTS = [
    {"name": "ce", "label": "Cross-entropy"},
    {"name": "ls", "label": "Level set", "set": {"model": "LevelSetLossTask"}, "paper": {"miou": 76.5}},
    {"name": "diverges", "set": {"model.lr": 1e30}},
    {"name": "crf", "label": "CRF | of [the] paper", "cite": True, "paper": {"miou": 71.2}},
]


def damaged_files_are_named(folder, ablate):
    for name in ("test.json", "test_images.npz"):
        path = folder / "ce-seed0" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        broken = ablate("report", folder)
        assert broken.returncode == 1
        assert f"{path} is damaged or missing" in broken.stderr
        assert "Traceback" not in broken.stderr
        path.write_bytes(whole)


def a_pattern_without_a_run_is_told(suite, ablate):
    typo = ablate("ablate", suite, "--only", "ce-*", "sl-seed0")
    assert typo.returncode == 1
    assert "--only sl-seed0 matches no run of the suite" in typo.stderr


def test_a_suite_with_a_failing_run(tmp_path, ablate):
    drawn = {"panels.images": 1}
    suite = write_suite(tmp_path, variants=VARIANTS, set=drawn, subsets={"first": "scene00000"})
    done = ablate("ablate", suite, "--jobs", 2)
    folder = tmp_path / "runs" / "tiny"
    # The failure shows in the status and with its last lines; the others went on, and the report says what is missing.
    assert done.returncode == 1
    assert "diverges-seed0 failed; the last lines of" in done.stdout
    assert "the training loss is not finite (in loss)" in done.stdout
    assert "1 of 3 runs are not finished" in " ".join(done.stdout.split())
    assert r"| CRF \| of [the] paper | – | 71.2 | – |" in (folder / "results.md").read_text()
    table = pd.read_csv(folder / "results.csv").set_index("variant")
    assert table.loc["ls", "paper_miou"] == 76.5
    assert table.loc["diverges", "seeds"] == 0
    runs = pd.read_csv(folder / "runs.csv").set_index("variant")
    difference = runs.loc["ls", "miou"] - runs.loc["ce", "miou"]
    assert table.loc["ls", "miou_difference"] == pytest.approx(difference, abs=1e-9)
    low, high = table.loc["ls", ["miou_difference_low", "miou_difference_high"]]
    assert low <= table.loc["ls", "miou_difference"] <= high
    assert "first_miou" in table
    markdown = (folder / "results.md").read_text()
    assert "| Level set |" in markdown
    assert "76.5" in markdown
    assert "training, peak MB" in markdown
    assert runs["train_peak_bytes"].between(5e7, 1e11).all()
    assert "| method | background | blob | ring |" in markdown
    for name in ("scores", "curves", "classes", "examples"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    for part in ("config.yaml", "environment.json", "last.ckpt", "metrics.jsonl", "test.json", "log.txt", "panels"):
        assert (folder / "ce-seed0" / part).exists()

    # Again: what is finished is skipped, and --only leaves the rest alone.
    written = (folder / "ce-seed0" / "test.json").stat().st_mtime_ns
    again = ablate("ablate", suite, "--only", "ce-*", "ls-*")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 finished run(s) were skipped" in again.stdout
    assert (folder / "ce-seed0" / "test.json").stat().st_mtime_ns == written

    # The report alone, from what is on disk.
    (folder / "results.md").unlink()
    assert ablate("report", folder).returncode == 0
    assert (folder / "results.md").read_text() == markdown

    a_pattern_without_a_run_is_told(suite, ablate)
    # Other settings under the same name would make the table lie, whichever runs are asked for.
    described = (folder / "suite.json").read_text()
    write_suite(tmp_path, variants=VARIANTS, set={**drawn, "trainer.max_steps": 2})
    for only in ((), ("--only", "ls-*")):
        other = ablate("ablate", suite, *only)
        assert other.returncode == 1
    assert "holds a run with other settings" in other.stderr
    assert (folder / "suite.json").read_text() == described

    damaged_files_are_named(folder, ablate)

    # A subset without images costs its columns, not the report.
    description = json.loads(described) | {"subsets": {"none": "Zebra*"}}
    (folder / "suite.json").write_text(json.dumps(description))
    assert ablate("report", folder).returncode == 0
    assert "| mIoU none |" in (folder / "results.md").read_text()


@pytest.mark.slow
def test_a_run_starts_from_the_last_weights_of_another(tmp_path, ablate):
    variants = [
        {"name": "first"},
        {
            "name": "second",
            "start": "first",
            "set": {"model.lr": 0, "trainer.max_steps": 1, "trainer.val_check_interval": 1},
        },
        {"name": "diverges", "set": {"model.lr": 1e30}},
        {"name": "never", "start": "diverges"},
    ]
    done = ablate("ablate", write_suite(tmp_path, variants=variants), "--jobs", 2)
    assert done.returncode == 1
    assert "never-seed0 was not started: the run that it starts from is not finished" in done.stdout
    folder = tmp_path / "runs" / "tiny"
    first, second = (
        torch.load(folder / f"{name}-seed0" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("first", "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first if key.endswith(("weight", "bias")))


def test_dry_run_lists_commands_that_run(tmp_path, lsseg):
    suite = write_suite(tmp_path, variants=VARIANTS[:2], seeds=[0, 1])
    status, out, _ = lsseg("ablate", suite, "--dry-run")
    assert status == 0
    commands = [line for line in out.splitlines() if line.startswith("lsseg fit ")]
    assert len(commands) == 4
    assert not (tmp_path / "runs").exists()
    assert "--model=LevelSetLossTask --seed_everything=0" in commands[1]
    assert lsseg(*commands[1].split()[1:], "--trainer.fast_dev_run=1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ablate", "nope.yaml"), "nope.yaml does not exist"),
        (
            ("ablate", "suite.yaml", "--only", "nothing-*"),
            "--only nothing-* matches no run of the suite; its runs are ce-seed0, ls-seed0",
        ),
        (("ablate", "suite.yaml", "--jobs", "0"), "--jobs must be more than 0, not 0"),
        (("report", "nowhere"), "nowhere holds no suite: suite.json"),
    ],
)
def test_bad_usage(tmp_path, lsseg, arguments, message):
    write_suite(tmp_path, variants=VARIANTS)
    status, _, err = lsseg(*arguments)
    assert status == 1
    assert message in err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_is_wrong_with_any_run_is_said_before_the_first(tmp_path, lsseg, dry):
    variants = [
        {"name": "right"},
        {"name": "key", "set": {"trainer.max_step": 3}},
        {"name": "value", "set": {"model.lr": "fast"}},
        {"name": "network", "set": {"model.network": "SmpNte"}},
    ]
    status, _, err = lsseg("ablate", write_suite(tmp_path, variants=variants, seeds=[0, 1]), *dry)
    assert status == 1
    first, *lines = err.splitlines()
    assert first == "lsseg: error: the suite: 3 problems"
    assert "key: unrecognized arguments: --trainer.max_step=3; did you mean --trainer.max_steps?" in lines[0]
    assert "value: model.lr: expected a number, not fast" in lines[1]
    assert "network: model.network: 'SmpNte' is not a known class; did you mean SmpNet?" in lines[2]
    assert not (tmp_path / "runs").exists()


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def pids(run):
    """Processes that have the run's folder in their command."""
    return subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True).stdout.split()


@pytest.mark.slow
def test_a_run_that_starts_while_its_runner_dies_goes_with_it(tmp_path):
    """Killed before the run has imported anything: no orphan may train beside the next runner's process."""
    suite = write_suite(tmp_path, variants=[{"name": "ce", "set": {"trainer.max_steps": 5000}}])
    run = tmp_path / "runs" / "tiny" / "ce-seed0"
    command = [sys.executable, "-m", "lsseg", "ablate", str(suite)]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((run / "log.txt").is_file)
    runner.kill()
    runner.wait()
    wait_for(lambda: not pids(run), 20)
    assert not (run / "last.ckpt").exists()


@pytest.mark.slow
def test_an_interrupted_runner_leaves_no_process_and_continues(tmp_path, ablate):
    settings = {"trainer.max_steps": 200, "checkpoint_every_n_steps": 5, "trainer.val_check_interval": 4}
    suite = write_suite(tmp_path, variants=[{"name": "ce", "set": settings}])
    run = tmp_path / "runs" / "tiny" / "ce-seed0"
    command = [sys.executable, "-m", "lsseg", "ablate", str(suite)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    # A shell's background job ignores interrupts, and so would what it starts.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    runner = subprocess.Popen(command, preexec_fn=heeds, **quiet)
    wait_for((run / "last.ckpt").is_file)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(60) != 0

    wait_for(lambda: not pids(run), 20)
    reached = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < reached < 200
    assert not (run / "test.json").exists()
    done = ablate("ablate", suite)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "test.json").read_text())["step"] == 200


def kill_when(condition, suite, root):
    """Start a suite's runner and kill it as soon as the condition holds; the kernel ends the run with it."""
    command = [sys.executable, "-m", "lsseg", "ablate", str(suite), "--root", str(root)]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    end = time.monotonic() + 200
    while not condition() and runner.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
    assert runner.poll() is None, "it ended before it could be killed"
    runner.kill()
    runner.wait()
    wait_for(lambda: not pids(root), 20)


@pytest.mark.slow
def test_a_full_disk_costs_nothing_but_the_time_until_there_is_room(tmp_path, ablate):
    """A disk of its own, filled by the run, then by the report, then made larger: bit for bit the same in the end."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk of its own may be made here: {mounted.stderr.strip()}")
    try:
        suite = write_suite(tmp_path, variants=[{"name": "ce"}], set={"checkpoint_every_n_steps": 2})
        run = place / "tiny" / "ce-seed0"
        for size in ("1m", "4m"):
            subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
            refused = ablate("ablate", suite, "--root", place)
            said = refused.stdout + refused.stderr
            assert refused.returncode == 1
            assert "disk full" in said or "No space left on device" in said
            assert "Traceback" not in said
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        assert ablate("ablate", suite, "--root", place).returncode == 0
        assert (place / "tiny" / "report.html").is_file()
        assert ablate("ablate", suite, "--root", tmp_path / "whole").returncode == 0
        whole = tmp_path / "whole" / "tiny" / "ce-seed0"
        ours, theirs = (torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (run, whole))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        ours, theirs = (json.loads((folder / "test.json").read_text())["scores"] for folder in (run, whole))
        assert ours == theirs
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tmp_path, ablate):
    """Within a step, while a checkpoint is written, before the test is, within the report: bit for bit the same."""
    settings = {"model": "LevelSetLossTask", "trainer.max_steps": 60, "checkpoint_every_n_steps": 5}
    settings |= {"trainer.val_check_interval": 4, "data.train_images": 10, "data.num_workers": 1}
    suite = write_suite(tmp_path, variants=[{"name": "ls", "set": settings}])
    whole = ablate("ablate", suite, "--root", tmp_path / "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    folder = tmp_path / "killed" / "tiny"
    run = folder / "ls-seed0"

    def steps():
        log = run / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.is_file() else 0

    kill_when(lambda: steps() > 10, suite, tmp_path / "killed")
    kill_when((run / ".last.ckpt.part").exists, suite, tmp_path / "killed")
    kill_when((run / "test_images.npz").exists, suite, tmp_path / "killed")
    kill_when((folder / "runs.csv").exists, suite, tmp_path / "killed")
    done = ablate("ablate", suite, "--root", tmp_path / "killed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "report.html").is_file()
    one, other = (root / "tiny" / "ls-seed0" for root in (tmp_path / "whole", tmp_path / "killed"))
    states = [torch.load(path / "last.ckpt", weights_only=True)["state_dict"] for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    scores = [json.loads((path / "test.json").read_text())["scores"] for path in (one, other)]
    assert scores[0] == scores[1]
    losses = [
        {r["step"]: r["train/loss"] for r in read_jsonl(p / "metrics.jsonl") if "train/loss" in r} for p in (one, other)
    ]
    assert losses[0] == losses[1]


def test_a_suite_of_instances(tmp_path, ablate, train_here):
    tiny = TINY.with_name("tiny_instances.yaml")
    plain = {"model.network.target": "binary", "model.network.evolution": "none", "model.network.resolution": 28}
    suite = tmp_path / "suite.yaml"
    (tmp_path / tiny.name).write_text(tiny.read_text())
    variants = [
        {"name": "plain", "label": "Mask R-CNN", "set": plain},
        {"name": "ours", "label": "LevelSet R-CNN", "paper": {"mask_ap": 36.2, "initial_mask_ap": 35.4}},
    ]
    content = {"name": "objects", "base": [tiny.name], "variants": variants, "subsets": {"first": "scene00000"}}
    content["set"] = {"panels.images": 1}
    suite.write_text(yaml.safe_dump(content))
    train_here(suite)
    done = ablate("ablate", suite)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "objects"
    table = pd.read_csv(folder / "results.csv").set_index("variant")
    assert table.loc["ours", "paper_initial_mask_ap"] == 35.4
    assert "initial_mask_ap" in table
    for name in ("ours", "plain"):
        scores = json.loads((folder / f"{name}-seed0" / "test.json").read_text())["scores"]
        assert table.loc[name, "mask_ap"] == pytest.approx(100 * scores["mask_ap"])
    assert "first_mask_ap" in table
    markdown = (folder / "results.md").read_text()
    assert "| method | AP | AP in the paper | Δ AP [95 %] |" in markdown
    assert "## AP by class" in markdown
    for name in ("scores", "curves", "classes", "examples"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    # A label map's scores have no place in the same table.
    summary = folder / "plain-seed0" / "test.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "kind": "semantic"}))
    broken = ablate("report", folder)
    assert broken.returncode == 1
    assert "is damaged or missing" in broken.stderr
