"""What is installed without the checkout: all files that the commands need, and the licence."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TOP = Path(__file__).parent.parent
TINY = ["--model.network.encoder_name=tu-test_resnet.r160_in1k", "--model.network.encoder_weights=null"]
QUICK = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--trainer.accelerator=cpu", "--data.num_workers=0"]


@pytest.mark.slow
def test_a_wheel_works_without_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path / "wheel", TOP], check=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    assert "Apache License" in (installed / "lsseg" / "LICENSE").read_text()
    environment = os.environ | {"PYTHONPATH": str(installed), "WANDB_MODE": "disabled"}

    def lsseg(*arguments):
        command = [sys.executable, "-c", f"import lsseg, sys; assert lsseg.__file__.startswith({str(installed)!r}); "]
        command[-1] += "from lsseg.cli import main; sys.exit(main())"
        done = subprocess.run(
            [*command, *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "commands:" in lsseg("--help")
    g = np.random.default_rng(0)
    for i in range(12):
        mask = np.hypot(*(np.mgrid[:40, :56] - g.integers(10, 30, 2)[:, None, None])) < 8
        image = np.where(mask[..., None], (200, 80, 60), (60, 90, 180)) + g.normal(0, 9, (40, 56, 3))
        for name, pixels in (("images", image.clip(0, 255).astype(np.uint8)), ("masks", mask.astype(np.uint8) * 255)):
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{i:02}.png")
    lsseg("init", "mine")
    lsseg("fit", "--config", "mine.yaml", *TINY, *QUICK)
    run = Path("runs", "mine")
    images = ("--data.images", "mine/images", "--predictions.output", "out")
    lsseg("predict", "--config", run / "config.yaml", "--ckpt_path", run / "last.ckpt", *images)
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 12
