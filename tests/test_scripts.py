"""The documentation's scripts for clusters: Slurm's is run with Slurm's variables, dask-jobqueue's up to `sbatch`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fercache.store.embedding_store import EmbeddingStore

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guide" / "clusters.md").read_text(encoding="utf-8")


def block(language: str, word: str) -> str:
    """Return the one block of code of the page in a language that holds a word."""
    (found,) = [text for text in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S) if word in text]
    return found


@pytest.fixture
def project(tmp_path: Path, weights_at: Path) -> Path:
    """A project's folder with five folders of crops, weights, and a `.venv` with the command."""
    rng = np.random.default_rng(0)
    for clip in range(5):
        (tmp_path / "clips" / f"{clip}").mkdir(parents=True)
        for number in (1, 2):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / f"clips/{clip}/{number}.jpg")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(weights_at)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "fercache").write_text(f'#!/bin/bash\nexec {sys.executable} -m fercache "$@"\n')
    (programs / "fercache").chmod(0o755)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH" PYTHONPATH="{ROOT}"\n')
    return tmp_path


def test_the_slurm_array(project: Path) -> None:
    """Three tasks of the script as it stands, but for the paths, fill one store; each does its part."""
    script = block("bash", "#SBATCH --array")
    for word, instead in (("/shared/project", str(project)), ("--dataset affwild2 --root /shared/Aff-Wild2",
                                                              "--clips clips --taps block8 --threads 1")):
        assert word in script
        script = script.replace(word, instead)
    (project / "extract.sh").write_text(script)
    subprocess.run(["bash", "-n", "extract.sh"], cwd=project, check=True)
    slurm = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "3",
             "SLURM_ARRAY_TASK_STEP": "1"}
    tasks = [subprocess.Popen(["bash", project / "extract.sh"], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, env={**os.environ, **slurm, "SLURM_ARRAY_TASK_ID": str(i)}) for i in (1, 2, 3)]
    said = [(task.communicate(timeout=300), task.returncode) for task in tasks]
    assert [code for _, code in said] == [0, 0, 0], said
    assert sorted(re.search(r"(\d) clips computed", err)[1] for (_, err), _ in said) == ["1", "2", "2"]  # type: ignore[index]
    assert len({out for (out, _), _ in said}) == 1
    assert len(EmbeddingStore.open(project / said[0][0][0].strip())) == 5


def test_the_dask_jobqueue_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes jobs of one worker with eight threads and cores, and calls a command that is there."""
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    import dask
    from click.testing import CliRunner

    from fercache.cli import main

    made: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobqueue.SLURMCluster, "scale",
                        lambda self, n=0, jobs=0: made.update(job=self.job_script(), jobs=jobs) if jobs else None)
    monkeypatch.setattr(subprocess, "run", lambda words, check: made.update(words=words))
    with dask.config.set({"jobqueue.slurm.scheduler-options": {"dashboard_address": "127.0.0.1:0"}}):
        exec(compile(block("python", "SLURMCluster"), "slurm.py", "exec"), {"__name__": "__main__"})
    monkeypatch.undo()
    (tmp_path / "job.sh").write_text(made["job"])
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
    for word in ("#SBATCH --cpus-per-task=8", "#SBATCH -t 04:00:00", "--nthreads 8", "distributed.cli.dask_worker"):
        assert word in made["job"]
    assert made["jobs"] == 8 and made["words"][:2] == ["fercache", "extract"]
    assert made["words"][-2] == "--scheduler" and made["words"][-1].startswith("tcp://")
    said = CliRunner().invoke(main, [*made["words"][1:-1], "tcp://x:1", "--workers", "2"])
    assert "a running scheduler has its own workers" in said.output, "all other flags were understood"
