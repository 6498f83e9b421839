"""RouteLLM's result files, in small, from a server on loopback: fetched once, verified, continued, and read."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow (make train-deps)")

from daemon.benchmark_files import benchmark_files
from models.fetch import StoreError
from routers.evaluation import routellm
from routers.evaluation.benchmarks import BENCHMARKS
from routers.pins import File
from routers.training import public
from routers.training.questions import CRUX, Question, sample
from tests.daemon.harness import cli, user_environment

HEADER = f"prompt,{routellm.WEAK},{routellm.STRONG}\n"
CONTENTS = {
    "mmlu/responses/mmlu_virology.csv": HEADER + '"Which?\nA. ""this""\nAnswer:",False,True\n',
    "mmlu/responses/mmlu_anatomy.csv": HEADER + "Where?,True,False\nLeaked?,True,True\n",
    "mmlu/contaminated_prompts.jsonl": '{"train_prompt": "leaked", "eval_prompt": "Leaked?"}\n',
    "gsm8k/gsm8k_responses.csv": HEADER + "How many\u2028?,False,True\n",
    "gsm8k/contaminated_prompts.jsonl": '{"eval_prompt": "another"}\n',
    "mt_bench/question.jsonl": "".join(
        f'{{"question_id": {number}, "turns": ["first {number}", "second {number}"]}}\n' for number in (81, 82)
    ),
    "mt_bench/judgements.jsonl": "".join(
        f'{{"question_id": {number}, "model": "{model}", "score": {score}}}\n'
        for number in (81, 82)
        for model, score in ((routellm.STRONG, 9), (routellm.STRONG, 8), (routellm.WEAK, 7), (routellm.WEAK, 4))
    ),
    "mt_bench/contaminated_prompts.jsonl": '{"eval_prompt": "second 82"}\n',
}


class Server(ThreadingHTTPServer):
    def __init__(self, contents: Mapping[str, str] = CONTENTS) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = {path: text.encode() for path, text in contents.items()}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: str | None = None
        """The file whose next response breaks off in the middle, and every one after it is refused."""
        self.refuse = False

        self.pins = [
            File(path, (f"http://127.0.0.1:{self.server_port}/{quote(path)}",), len(bytes_), _sha256(bytes_))
            for path, bytes_ in self.contents.items()
        ]

    def files(self) -> list[File]:
        return self.pins


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = unquote(self.path.lstrip("/"))
        self.server.asked.append((path, self.headers["Range"]))
        if self.server.refuse:
            self.send_error(503)
            return
        body = self.server.contents[path]
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")[1])  # type: ignore[index]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if path == self.server.cut:
            self.server.refuse = True
            body = body[: len(body) // 2]
        self.wfile.write(body[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(getattr(request, "param", CONTENTS))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def quiet(_done: int, _total: int) -> None:
    pass


def test_the_files_give_the_rows_of_the_benchmarks(server: Server, tmp_path: Path) -> None:
    folder = benchmark_files(server.files(), quiet, tmp_path)

    mmlu, gsm8k, mt_bench = (BENCHMARKS[name](folder) for name in ("mmlu", "gsm8k", "mt-bench"))
    assert mmlu.prompts == ["Where?", 'Which?\nA. "this"\nAnswer:']
    assert (mmlu.strong.tolist(), mmlu.weak.tolist()) == ([0, 1], [1, 0])
    assert (gsm8k.prompts, gsm8k.strong.tolist(), gsm8k.weak.tolist()) == (["How many\u2028?"], [1], [0])
    assert (mt_bench.prompts, mt_bench.strong.tolist(), mt_bench.weak.tolist()) == (["first 81"], [8.5], [5.5])


def test_what_is_here_is_not_fetched_again_and_progress_ends_with_all_of_it(server: Server, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    benchmark_files(server.files(), lambda *at: heard.append(at), tmp_path)
    assert [path for path, _ in server.asked] == list(CONTENTS)
    total = sum(len(text.encode()) for text in CONTENTS.values())
    assert heard == sorted(heard)
    assert heard[-1] == (total, total)

    benchmark_files(server.files(), quiet, tmp_path)
    assert len(server.asked) == len(CONTENTS)


def test_a_transfer_that_broke_off_is_continued_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cut = "gsm8k/gsm8k_responses.csv"
    with pytest.raises(StoreError, match=r"gsm8k_responses\.csv was not fetched.*--data"):
        benchmark_files(server.files(), quiet, tmp_path)
    server.cut, server.refuse = None, False
    server.asked.clear()

    folder = benchmark_files(server.files(), quiet, tmp_path)
    half = len(CONTENTS["gsm8k/gsm8k_responses.csv"].encode()) // 2
    assert server.asked[0] == ("gsm8k/gsm8k_responses.csv", f"bytes={half}-")
    assert BENCHMARKS["gsm8k"](folder).prompts == ["How many\u2028?"]
    assert not list(tmp_path.rglob("*.part"))


def test_another_file_than_the_pinned_one_is_never_read(server: Server, tmp_path: Path) -> None:
    path = "gsm8k/gsm8k_responses.csv"
    server.contents[path] = server.contents[path].replace(b"False", b"Faked")
    with pytest.raises(StoreError, match="SHA-256"):
        benchmark_files(server.files(), quiet, tmp_path)
    assert not (tmp_path / path).exists()


def test_a_file_that_was_damaged_here_is_fetched_again(server: Server, tmp_path: Path) -> None:
    folder = benchmark_files(server.files(), quiet, tmp_path)
    (folder / "gsm8k/gsm8k_responses.csv").write_text("prompt\n")
    benchmark_files(server.files(), quiet, tmp_path)
    assert BENCHMARKS["gsm8k"](folder).prompts == ["How many\u2028?"]


@pytest.mark.parametrize(("files", "count", "folder"), [(routellm.files(), 63, ""), (public.files(), 31, "[a-z_]+/")])
def test_every_pinned_file_is_named_by_its_commit_and_a_whole_hash(files: list[File], count: int, folder: str) -> None:
    assert len(files) == len({file.path for file in files}) == count
    for file in files:
        path = quote(re.sub(f"^{folder}", "", file.path))
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert all(re.search(r"^https://.*/[0-9a-f]{40}/.*" + re.escape(path) + "$", url) for url in file.urls)


QUESTIONS = {
    "mmlu_pro/eval_results/gpt4o/computer science_result.json": json.dumps(
        [
            {"question": "Which?", "options": ["this", "that", "none"], "answer": "B", "pred": pred, "src": src}
            for src, pred in (("stemez-Business", "B"), ("ori_mmlu-virology", "B"))
        ]
    ),
    "agieval/some/samples_agieval_sat_math_2025-04-10T07-38-40.jsonl": "".join(
        json.dumps({"doc": {"query": f"Q: {stem} is? Answer Choices: (A)2 (B)4\nA:", "gold": gold}, "acc": 1.0}) + "\n"
        for stem, gold in (("x", [1]), ("y", [0, 1]))
    ),
    "crux/result_dirs/crux/gpt-4-turbo.json": json.dumps(
        [{"question": "Say.\n\n[PYTHON]\nf('a') == ??\n[/PYTHON]", "answer": "'a'", "output": [said]}
         for said in ('```json\n{"reasoning": "r", "answer": "a"}\n```',)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("server", [QUESTIONS], indirect=True)
def test_published_questions_are_fetched_and_read_without_those_of_benchmarks(server: Server, tmp_path: Path) -> None:
    folder = benchmark_files(server.files(), quiet, tmp_path)
    found = sample(folder, {"mmlu_pro": 5, "agieval_en": 5, "agieval_zh": 5, "crux": 5}, public.read)

    assert sorted(found, key=lambda each: each.source) == [
        Question("agieval_en", "x is?\nA. 2\nB. 4", "B", 1.0, choices=2),
        Question("crux", f"{CRUX}\n\nf('a') == ??", "'a'", 1.0, "literal", 0),
        Question("mmlu_pro", "Which?\nA. this\nB. that\nC. none", "B", 1.0, choices=3),
    ]


@pytest.mark.parametrize(
    ("output", "gold", "right"),
    [
        ('{"answer": "[1, 2]"}', "[1,2]", True),
        ('{"answer": [1, 2]}', "[1,2]", True),
        ('{"answer": "a"}', "'a'", True),
        ('{"answer": "\'a\'"}', "'a'", True),
        ('{"answer": "b"}', "'a'", False),
        ("I do not know.", "'a'", False),
    ],
)
def test_published_answers_are_marked_with_and_without_quotation_marks(output: str, gold: str, right: bool) -> None:
    assert public.is_said(output, gold) is right


def test_without_data_and_in_privacy_mode_nothing_is_fetched(tmp_path: Path) -> None:
    home = user_environment(tmp_path)
    home.pop("UPCALL_DATA", None)
    assert cli(home, "privacy", "on").returncode == 0
    refused = cli(home, "evaluate", "--routers", "random")

    assert refused.returncode == 1
    assert "privacy mode is on" in refused.stderr
    assert "Traceback" not in refused.stderr


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
