"""``taskrouter run``: what is asked, of which option, and how answers and failures are printed."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from .stage import FAKE, Cli, write


@pytest.fixture(autouse=True)
def _a_file_and_a_picture(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, b"\x89PNG", name="a.png")
    write(tmp_path, b"\x89PNG", name="b.png")


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_picture_is_classified(cli: Cli) -> None:
    result = cli("run", "look", "a.png", "--top-k", "2")
    assert result.code == 0
    assert result.out == "cat  0.750\ndog  0.200\n"
    assert result.err == "taskrouter: using ./models.yaml\n"


def test_programs_get_the_labels_the_option_and_the_model(cli: Cli) -> None:
    data = cli("run", "look", "a.png", "b.png", "--json").data
    assert (data["ok"], data["task"], data["option"], data["file"]) == (True, "look", "eyes", "models.yaml")
    assert data["model"].startswith("eyes#")
    assert [answer["input"] for answer in data["answers"]] == ["a.png", "b.png"]
    assert data["answers"][1]["labels"][0] == {"label": "cat", "score": 0.75}


def test_several_inputs_are_named_above_their_answers(cli: Cli) -> None:
    assert cli("run", "look", "a.png", "b.png", "--top-k", "1").out == "a.png:\ncat  0.750\n\nb.png:\ncat  0.750\n"


def test_chat_takes_text_a_file_or_stdin(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "words of a file", name="words.txt")
    pipe_in(monkeypatch, b"words of stdin")
    result = cli("run", "say", "just words", "words.txt", "-", "--json")
    assert [(answer["input"], answer["text"]) for answer in result.data["answers"]] == [
        ("just words", "parrot: just words"),
        ("words.txt", "parrot: words of a file"),
        ("stdin", "parrot: words of stdin"),
    ]
    assert result.data["answers"][0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}


def test_a_closed_stdin_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    result = cli("run", "say", "-")
    assert result.code == 2
    assert "stdin is closed" in result.err


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_refused(cli: Cli, text: str) -> None:
    result = cli("run", "say", text)
    assert result.code == 2
    assert "the text is empty" in result.err


def test_chat_is_streamed_as_it_comes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    write_out = sys.stdout.write

    def watch(text: str) -> int:
        pieces.append(text)
        return write_out(text)

    monkeypatch.setattr(sys.stdout, "write", watch)
    assert cli("run", "say", "one two three").out == "parrot: one two three\n"
    assert [piece for piece in pieces if piece.strip()] == ["parrot: ", "one ", "two ", "three"]


def test_max_tokens_bounds_the_answer(cli: Cli) -> None:
    assert cli("run", "say", "one two three", "--max-tokens", "2").out == "parrot: one\n"
    answer = cli("run", "say", "one two three", "--max-tokens", "2", "--json").data["answers"][0]
    assert (answer["text"], answer["finish_reason"]) == ("parrot: one", "length")


def test_text_that_looks_like_a_path_is_pointed_out(cli: Cli) -> None:
    result = cli("run", "say", "notes.txt")
    assert result.out == "parrot: notes.txt\n"
    assert "there is no file notes.txt; it is taken as the text itself" in result.err
    assert "no file" not in cli("run", "say", "See notes.txt for more.").err


def test_stdin_is_bytes_for_media(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"\x89PNG\xff\xfe")
    assert cli("run", "look", "-", "--top-k", "1").out == "cat  0.750\n"


def test_a_path_of_the_users_own_choice_is_read_wherever_it_is(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    path = write(tmp_path / "config", FAKE + "\nmedia: {roots: [nowhere], max_bytes: 5B}\n")
    assert cli("run", "look", "a.png", "-f", path).code == 0
    write(tmp_path, b"123456", name="big.png")
    result = cli("run", "look", "big.png", "--file", path)
    assert result.code == 2
    assert "big.png has 6 bytes, and media.max_bytes allows 5 bytes" in result.err


def test_another_option_may_be_asked(cli: Cli) -> None:
    result = cli("run", "look", "a.png", "--option", "blind", "--json")
    assert result.code == 1
    assert result.data["error"]["type"] == "LoadFailed"
    assert result.err.splitlines()[1:] == ["taskrouter: blind could not be loaded: it is scripted to fail"]
    assert cli("run", "look", "a.png", "--option", "ears").code == 2


def test_a_model_that_can_never_fit_is_refused_with_what_to_do(cli: Cli) -> None:
    result = cli("run", "say", "hello", "--option", "giant")
    assert result.code == 1
    assert "giant needs 500000.0 GiB on" in result.err
    assert "Pick a smaller option" in result.err


def test_the_time_to_wait_may_be_bounded(cli: Cli) -> None:
    result = cli("run", "look", "a.png", "--option", "slow", "--timeout", "0.05", "--json")
    assert result.code == 1
    assert result.data["error"]["type"] == "Overloaded"


def test_an_unknown_task_names_the_nearest(cli: Cli) -> None:
    result = cli("run", "lok", "a.png")
    assert result.code == 2
    assert "did you mean 'look'?" in result.err


def test_a_path_that_is_not_there_is_found_out_before_anything_is_loaded(cli: Cli) -> None:
    result = cli("run", "look", "a.png", "c.png", "--option", "blind")
    assert result.code == 2, "blind can't be loaded: that would have been 1"
    assert "c.png isn't there" in result.err
    assert cli("run", "look", "a.png", "", "--option", "blind").code == 2
    assert cli("run", "look", "-", "-").code == 2


def test_a_folder_is_no_input(cli: Cli, tmp_path: Path) -> None:
    for task in ("look", "say"):
        result = cli("run", task, tmp_path)
        assert result.code == 2
        assert "is a folder" in result.err


def test_an_input_that_cannot_be_used_leaves_the_others_their_answers(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, b"caf\xe9", name="latin.txt")
    result = cli("run", "say", "latin.txt", "hello", "--json")
    assert (result.code, result.data["ok"]) == (2, False)
    bad, good = result.data["answers"]
    assert bad["error"]["type"] == "BadInput"
    assert good["text"] == "parrot: hello"
    assert "latin.txt is no UTF-8 text (byte 3)" in result.err
    assert "hello" in cli("run", "say", "latin.txt", "hello").out


def test_a_model_that_dies_ends_the_asking(cli: Cli, tmp_path: Path) -> None:
    dying = FAKE.replace("{bytes: 2MiB}", "{bytes: 2MiB, fail: die}")
    result = cli("run", "say", "one", "two", "-f", write(tmp_path, dying, name="dying.yaml"), "--json")
    assert result.code == 1
    assert [answer.get("error", {}).get("type") for answer in result.data["answers"]] == ["ModelDied"]


def test_a_task_that_names_no_kind_is_asked_what_its_model_can_do(cli: Cli, tmp_path: Path) -> None:
    for verbs, given, said in (
        ("[classify]", "a.png", "m  1.000\n"),
        ("[chat, stream_chat]", "hello", "m: hello\n"),
        ("[detect]", "a.png", "m  1.000  0 0 1 1\n"),
        ("[transcribe]", "a.png", "m: something was said\n"),
        ("[segment]", "a.png", "m  1.000  1 px  0 0 1 1\n"),
        ("[track]", "a.png", "1  m  0.0–0.0 s  0 0 1 1 → 0 0 1 1\n"),
        ("[depth]", "a.png", ""),
    ):
        option = f"{{model_id: m, framework: fake, engine_args: {{verbs: {verbs}}}}}"
        path = write(tmp_path, f"tasks: {{t: {{selected: m, options: {{m: {option}}}}}}}", name="kindless.yaml")
        result = cli("run", "t", given, "-f", path)
        assert (result.code, result.out) == (0 if said else 2, said)


def test_a_task_the_command_has_no_verb_for_is_usage(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", "look", "a.png", "-f", write(tmp_path, FAKE.replace("image_classification", "depth")))
    assert result.code == 2
    assert "is of kind depth; `taskrouter run` asks tasks that chat, classify, detect, segment," in result.err


def test_objects_and_what_was_said_are_told_as_data(cli: Cli, tmp_path: Path) -> None:
    found = "engine_args: {answer: [{label: cup, score: 0.9, box: [1, 2, 3, 4]}]}"
    tasks = "".join(
        f"  {kind}: {{kind: {kind}, selected: m, options: {{m: {{model_id: {kind}, framework: fake, {extra}}}}}}}\n"
        for kind, extra in (("detection", found), ("transcription", "engine_args: {answer: hello}"))
    )
    path = write(tmp_path, f"tasks:\n{tasks}", name="two.yaml")
    objects = cli("run", "detection", "a.png", "-f", path, "--json").data["answers"][0]["objects"]
    assert objects == [{"label": "cup", "score": 0.9, "box": [1, 2, 3, 4]}]
    heard = cli("run", "transcription", "a.png", "-f", path, "--json").data["answers"][0]
    assert (heard["text"], heard["segments"]) == ("hello", [])
    nothing = found.replace("0.9", "0.1")
    path = write(tmp_path, f"tasks:\n{tasks.replace(found, nothing)}", name="nothing.yaml")
    assert cli("run", "detection", "a.png", "-f", path).out == "nothing found\n"


def test_the_default_task_goes_by_its_other_name(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, FAKE + "default_task: say\n")
    assert cli("run", "default", "hello", "--json").data["task"] == "say"


def test_somebody_who_watches_sees_a_spinner_and_a_file_gets_none(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        assert cli("run", "look", "a.png").code == 0
    assert "loading eyes" in terminal.getvalue()
    assert "loading" not in cli("run", "look", "a.png").err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_instead_of_waited_for(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = cli("run", "look", "pipe")
    assert result.code == 2
    assert "no regular file" in result.err
