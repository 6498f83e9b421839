"""Getting to know a model: what is interrupted goes on, power is waited for, and what comes out can be loaded."""

import contextlib
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT

import numpy as np
import pytest
from click.testing import CliRunner

from daemon import learn
from daemon.cli import cli
from daemon.routing.battery import Charge
from models.fetch import file_sha256
from models.llama.errors import LoadError
from models.llama.quiz import Quiz
from models.store import Store
from routers.second_look import SecondLook, beside
from routers.training import attempts as kept
from routers.training.questions import BLOCK, Question
from routers.training.second_look import lessons, ship
from tests.daemon.harness import UPCALL, user_environment

QUESTIONS = [
    Question(
        ("mmlu_pro", "agieval_en", "crux")[number % 3],
        f"{number} + 1 = ?\nA. {number + 1}\nB. {number}",
        "A",
        1.0,
        choices=2,
    )
    for number in range(BLOCK + 8)
]


class StoppedError(Exception):
    pass


def attempted(questions: Sequence[Question], width: int) -> kept.Attempts:
    """What a model with hidden states of that width may have made of them; every other one right."""
    random, count = np.random.default_rng(0), len(questions)
    sureness = random.random((4, count, 1)).tolist()
    return kept.Attempts(
        np.array([question.key for question in questions]),
        np.arange(count) % 2 == 0,
        *(random.random((count, width)).astype(np.float16) for _ in range(2)),
        *(kept.padded(each, kept.WATCHED) for each in sureness[:2]),
        kept.padded(np.concatenate(sureness[2:], axis=1).tolist(), kept.CHOICES),
    )


@pytest.fixture(autouse=True)
def _no_lasting_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn.os, "nice", lambda increment: 0)


def test_what_was_interrupted_goes_on_and_asks_nothing_twice(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []
    ask = Quiz.ask
    monkeypatch.setattr(Quiz, "ask", lambda quiz, asked: put.extend(each.prompt for each in asked) or ask(quiz, asked))

    def stop(done: int, total: int, state: str) -> None:
        assert total == len(QUESTIONS)
        if done:
            raise StoppedError

    with pytest.raises(StoppedError):
        learn.ask(smollm2, QUESTIONS, tmp_path, on_progress=stop)
    assert len(put) == BLOCK
    heard: list[int] = []
    found = learn.ask(smollm2, QUESTIONS, tmp_path, on_progress=lambda done, total, state: heard.append(done))

    assert heard == [BLOCK, len(QUESTIONS)]
    assert sorted(put) == sorted(question.prompt for question in QUESTIONS)
    assert found.key.tolist() == [question.key for question in QUESTIONS]
    assert found.at_first.shape == (len(QUESTIONS), 576)
    assert not any(b"= ?" in file.read_bytes() for file in tmp_path.iterdir()), "no text is kept"

    some = lessons(QUESTIONS, found, [0.5] * len(QUESTIONS))
    ship(some, tmp_path / "look", file_sha256(smollm2))
    chance = SecondLook.load(tmp_path / "look").judge(0.5, np.ones(576), [1.0], [0.5])
    assert 0 < chance < 1


def test_questions_that_were_all_asked_load_no_model(tmp_path: Path) -> None:
    kept.append(tmp_path, attempted(QUESTIONS, 4))
    assert len(learn.ask(tmp_path / "no-such.gguf", QUESTIONS[:3], tmp_path)) == 3


def test_on_battery_it_waits_until_there_is_power(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    monkeypatch.setattr(learn, "charge", lambda: Charge(0.5, discharging=len(said) != 3))
    monkeypatch.setattr(learn, "ON_BATTERY", 0.0)
    learn.ask(smollm2, QUESTIONS[:2], tmp_path, on_progress=lambda done, total, state: said.append(state))
    assert said == ["", "waiting for mains power", "waiting for mains power", ""]


def test_the_command_asks_in_a_process_without_a_network_and_leaves_what_it_learnt_beside_the_model(
    store: Store, smollm2: Path, use_encoder: Path, data: Path, tmp_path: Path
) -> None:
    (model := tmp_path / "mine.gguf").symlink_to(smollm2)
    sha256 = store.find("smollm2-135m").sha256
    # Most was asked before it was interrupted: a question takes a second of two cores.
    questions = learn.to_learn(200, data, public=False)
    answers = tmp_path / "cache/upcall/attempts" / learn.folder(sha256).name
    kept.append(answers, attempted(questions[:-16], 576))
    environment = {**user_environment(tmp_path), "UPCALL_ENCODER": str(use_encoder)}
    command = [UPCALL, "learn-model", model, "--data", data, "--questions", "200"]
    with subprocess.Popen(command, env=environment, stdout=PIPE, stderr=STDOUT, text=True) as asking:
        filters: set[str] = set()
        while asking.poll() is None:
            with contextlib.suppress(OSError):
                filters |= set(re.findall(r"^Seccomp:\t(\d)", Path(f"/proc/{asking.pid}/status").read_text(), re.M))
            time.sleep(0.1)
        assert asking.stdout is not None
        said = asking.stdout.read()
    assert asking.returncode == 0, said
    assert "2" in filters
    asked = kept.read(answers)
    assert asked is not None
    assert asked.key.tolist() == [question.key for question in questions]
    found = beside(model, sha256)
    assert f"{found}: second look {SecondLook.load(found).version}, trained on " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learn-model", "no-such-model", "--data", "."], "no model is called"),
        (["learn-model", "./no-such.gguf", "--data", "."], "there is no file"),
        (["learn-model", "smollm2-135m", "--data", ".", "--questions", "3"], "200"),
        (["evaluate", "--second-look", "smollm2-135m"], "--data"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPCALL_DATA", raising=False)
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert message in done.output + str(done.exception)


def test_a_damaged_model_is_refused_in_a_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LoadError) as refused:
        learn.ask(broken, QUESTIONS, tmp_path / "kept")
    assert str(broken) in str(refused.value)
    assert "\n" not in str(refused.value)
