"""What would be published, built and installed as somebody else would do it: the wheel and the sdist."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from flannel_pl import __version__

ROOT = Path(__file__).parents[1]
NAME = f"flannel_pl-{__version__}"
STRAYS = ("notes.txt", "flannel_pl/scratch.py", "flannel_pl/my lab!/idea#1.py", "configs/mine.yaml")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not (ROOT / ".git").exists(), reason="no git checkout: only git knows what belongs to it"
    ),
]


def tracked() -> set[str]:
    listed = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "-z"], text=True)
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def build(project: Path, out: Path, target: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)],
        cwd=project,
        check=True,
    )
    (built,) = out.iterdir()
    return built


@dataclass(frozen=True)
class Built:
    """An sdist, the wheel of the same checkout, and the wheel of the unpacked sdist."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    project = folder / "project"
    for name in tracked():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project / name)
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run(["git", "add", "-A", "-f"], cwd=project, check=True)
    for name in STRAYS:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("1 / 0\n")
    sdist = build(project, folder / "sdist", "sdist")
    wheel = build(project, folder / "wheel", "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return Built(sdist, wheel, build(folder / "unpacked" / NAME, folder / "again", "wheel"))


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_sdist_is_what_git_knows(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
    assert names - tracked() == {"PKG-INFO"}
    assert tracked() - names == set()


def test_the_wheel_is_the_package_with_configs_types_and_license(built: Built) -> None:
    names = set(contents(built.wheel))
    about = {name.removeprefix(f"{NAME}.dist-info/") for name in names if ".dist-info/" in name}
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    package = {name for name in names if ".dist-info/" not in name}
    ours = {name for name in tracked() if name.startswith("flannel_pl/")}
    configs = {f"flannel_pl/{name}" for name in tracked() if name.startswith("configs/")}
    assert package == ours | configs
    assert {"flannel_pl/py.typed", "flannel_pl/configs/quickstart.yaml"} <= package
    assert contents(built.wheel_of_sdist) == contents(built.wheel)


def test_the_wheel_says_what_it_is(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        text = archive.read(f"{NAME}.dist-info/METADATA").decode()
    about: Message = Parser().parsestr(text)
    assert (about["Name"], about["Version"], about["License-Expression"]) == (
        "flannel-pl",
        __version__,
        "MIT",
    )
    assert {"comet", "mlflow", "tensorboard", "wandb"} <= set(about.get_all("Provides-Extra", []))
    assert len(about.get_all("Project-URL", [])) == 5


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and with this one's other packages."""

    python: Path

    @property
    def program(self) -> Path:
        return self.python.with_name("flannel-pl")

    def run(self, *command: str | Path, cwd: Path) -> str:
        """Runs a command as on a machine that never saw this checkout; returns what it prints."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env["FLANNEL_PL_CACHE"] = str(cwd.parent / "cache")
        done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(built.wheel)]
    subprocess.run(command, check=True)
    # What a .pth file adds comes last, and .pth files in there are not read: flannel_pl is that of the wheel.
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    ours = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(ours) / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return Installed(python)


SCRIPT = """
import sys
from pathlib import Path

import flannel_pl

package = Path(flannel_pl.__file__).parent
assert package.is_relative_to(sys.prefix), package
with flannel_pl.open_recording("runs/quickstart") as recording:
    dead = recording.masks["dead_indices"]
    W = recording.run(1).embeddings[1:3, dead]
    print(W.shape, W.dtype, len(recording.run(1).losses_f32[:]))
"""


def test_an_installed_wheel_runs_the_quickstart_from_an_empty_folder(
    installed: Installed, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    code = "from flannel_pl.shipped import shipped_configs; print(shipped_configs()['quickstart'], end='')"
    config = installed.run(installed.python, "-c", code, cwd=folder)
    assert Path(config).is_relative_to(installed.python.parents[1])
    assert installed.run(installed.program, "--version", cwd=folder).split()[-1] == __version__
    installed.run(installed.program, "fit", "--config", config, "--trainer.max_steps", "3", cwd=folder)
    installed.run(installed.program, "verify", "runs/quickstart", cwd=folder)
    assert installed.run(installed.python, "-c", SCRIPT, cwd=folder) == "(2, 3699, 64) bfloat16 4\n"
    assert [path.name for path in folder.iterdir()] == ["runs"]


USER = '''
"""What somebody else writes, whose type checker is strict."""

from pathlib import Path
from typing import assert_type

import flannel_pl
from flannel_pl.shipped import shipped_configs


def losses(folder: Path) -> list[float]:
    with flannel_pl.open_recording(folder) as recording:
        return [float(loss) for loss in recording.run(0).losses_f32[:]]


assert_type(shipped_configs(), dict[str, Path])
recorder = flannel_pl.StepRecorder("runs/mine", "emb.weight")
flannel_pl.open_recording(3)  # type: ignore[arg-type]
flannel_pl.open_recording("runs/mine").run("first")  # type: ignore[arg-type]
'''


def test_a_strict_type_checker_sees_the_types_of_an_installed_wheel(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "user.py").write_text(USER)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed.python)
    assert installed.run(*mypy, "user.py", cwd=tmp_path) == "Success: no issues found in 1 source file\n"
