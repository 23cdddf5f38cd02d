"""``taskrouter validate``: the file, the budget, and the exit code."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from taskrouter.backends.base import Preflight
from taskrouter.backends.fake import FakeBackend
from taskrouter.backends.registry import Registry
from taskrouter.cli.needs import Needs, find_needs, offline
from taskrouter.cli.validate import machine_of
from taskrouter.config import Catalog, load_catalog
from taskrouter.errors import BadInput
from taskrouter.manager import StillMachine, ThisMachine
from taskrouter.manager.specs import uses
from taskrouter.memory.ledger import FootprintLedger, Remembered
from taskrouter.types import CPU, GIB, Footprint, ModelRequest

from .stage import FAKE, Cli, write


def one(option: str, *, more: str = "") -> str:
    """A file with one task and one option."""
    return f"tasks: {{t: {{kind: chat, selected: m, options: {{m: {{model_id: m, {option}}}}}}}}}\n{more}"


def fits(data: dict[str, object]) -> dict[str, str]:
    options = data["options"]
    assert isinstance(options, list)
    return {f"{item['task']}/{item['option']}": item["fit"] for item in options}


def test_a_good_file_says_what_every_option_needs_and_where_it_fits(cli: Cli, tmp_path: Path) -> None:
    result = cli("validate", write(tmp_path), "--device", "24GiB", "--json")
    assert (result.code, result.err) == (0, "")
    data = result.data
    assert (data["ok"], data["servable"], data["all_resident"], data["problems"]) == (True, True, True, [])
    assert [device["device"] for device in data["devices"]] == ["cuda:0"], "RAM that nobody gave is no figure"
    (gpu,) = data["devices"]
    assert (gpu["total_bytes"], gpu["budget_bytes"]) == (24 * GIB, int(24 * GIB * 0.85))
    assert gpu["together"] == ["look/eyes", "say/parrot"]
    assert gpu["selected_bytes"] == 5 << 20
    needs = {item["option"]: (item["need_bytes"], item["source"]) for item in data["options"]}
    assert needs["eyes"] == (3 << 20, "estimated")
    assert needs["giant"] == (500_000 * GIB, "declared")
    assert data["never"] == ["say/giant"]
    assert fits(data)["say/giant"] == "never", "it isn't selected, so the answer is still yes"
    assert fits(data)["look/blind"] == "together"


def test_people_get_the_same_as_a_table(cli: Cli, tmp_path: Path) -> None:
    result = cli("validate", write(tmp_path), "--device", "24GiB")
    lines = {tuple(line.split()) for line in result.out.splitlines()}
    assert ("look", "●", "eyes", "3.0", "MiB", "estimated", "together", "on", "cuda:0") in lines
    assert ("cuda:0", "24.0", "GiB", "20.4", "GiB", "5.0", "MiB", "–", "look/eyes", "–") in lines
    assert "yes: every selected option can be served" in result.out
    assert "never fits: say/giant" in result.out


def test_what_fits_only_by_swapping_is_still_a_yes_unless_all_must_be_resident(cli: Cli, tmp_path: Path) -> None:
    swapping = cli("validate", write(tmp_path), "--device", "5MiB", "--json")
    assert (swapping.code, swapping.data["all_resident"]) == (0, False)
    assert (fits(swapping.data)["look/eyes"], fits(swapping.data)["say/parrot"]) == ("together", "by swapping")
    assert swapping.data["devices"][0]["by_swapping"] == ["say/parrot"]
    all_at_once = cli("validate", "--device", "5MiB", "--all-resident")
    assert all_at_once.code == 1
    assert "not all selected options are known to fit at once" in all_at_once.err
    assert cli("validate", "--device", "5MiB", "--device", "5MiB", "--all-resident").code == 0


def test_an_option_that_is_not_selected_is_judged_as_if_it_were(cli: Cli, tmp_path: Path) -> None:
    options = "a: {model_id: a, framework: fake, vram_gb: 4}, b: {model_id: b, framework: fake, vram_gb: 9}"
    tasks = f"t: {{kind: chat, selected: a, options: {{{options}}}}}, u: {{kind: chat, selected: m, options: {{m: "
    text = f"tasks: {{{tasks}{{model_id: m, framework: fake, vram_gb: 5}}}}}}}}"
    data = cli("validate", write(tmp_path, text), "--device", "12GiB", "--json").data
    assert fits(data) == {"t/a": "together", "t/b": "by swapping", "u/m": "together"}
    data = cli("validate", "--device", "20GiB", "--json").data
    assert fits(data)["t/b"] == "together", "b would take the place of a, not stand beside it"
    assert data["devices"][0]["together"] == ["t/a", "u/m"], "what is listed there really is together"


def test_a_selected_option_too_large_for_the_machine_is_a_no(cli: Cli, tmp_path: Path) -> None:
    result = cli("validate", write(tmp_path, one("framework: fake, vram_gb: 20")), "--device", "12GiB")
    assert result.code == 1
    assert "no: t/m can never fit: it needs 20.0 GiB and at most 10.2 GiB can be had" in result.out


def test_a_selected_option_that_does_not_fit_beside_the_pins_is_a_no(cli: Cli, tmp_path: Path) -> None:
    pinned = FAKE.replace("{model_id: eyes,", "{model_id: eyes, pinned: true,")
    result = cli("validate", write(tmp_path, pinned), "--device", "5MiB", "--json")
    assert result.code == 1
    assert result.data["problems"] == ["say/parrot can never fit: it needs 2.0 MiB beside what is pinned"]
    assert result.data["devices"][0]["pinned_bytes"] == 3 << 20


def test_a_selected_option_this_installation_cannot_use_is_a_no(cli: Cli, tmp_path: Path) -> None:
    result = cli("validate", write(tmp_path, one("framework: vllm, vram_gb: 2")), "--device", "12GiB", "--json")
    assert result.code == 1
    assert fits(result.data) == {"t/m": "can't be used here"}
    assert "vllm isn't installed" in cli("validate", tmp_path / "models.yaml", "--device", "12GiB").out


def test_frameworks_that_nobody_brought_say_what_brings_them(cli: Cli, tmp_path: Path) -> None:
    """The shape of a file from another house: libraries of their own for speech."""
    file = write(
        tmp_path,
        """
        models:
          audio_transcription:
            selected: turbo
            options:
              turbo: {model_id: openai/whisper-large-v3-turbo, framework: whisper, vram_gb: 5}
              fast: {model_id: Systran/faster-whisper-large-v3, framework: faster_whisper, vram_gb: 3}
          speaker_diarization:
            selected: pyannote
            options:
              pyannote: {model_id: pyannote/speaker-diarization-3.1, framework: pyannote, vram_gb: 2}
        """,
    )
    result = cli("validate", file, "--device", "24GiB", "--json")
    assert result.code == 1
    options = result.data["options"]
    said = {item["option"]: item["why"] for item in options}
    bring = "pip install a package that brings it, or write one (docs/plug-ins.md): {} in the entry-point group"
    for option, framework in (("turbo", "whisper"), ("fast", "faster_whisper"), ("pyannote", "pyannote")):
        assert f"no plug-in for the framework {framework!r} is installed; " in said[option]
        assert f"{bring.format(framework)} taskrouter.backends" in said[option]
    assert "write framework: transformers" in said["turbo"]
    assert "write framework: transformers" in said["fast"]
    assert "transformers" not in said["pyannote"]


def test_an_option_its_backend_refuses_is_a_no_with_the_reason(cli: Cli, tmp_path: Path) -> None:
    text = one("framework: fake, vram_gb: 1, engine_args: {sise: 3}")
    result = cli("validate", write(tmp_path, text))
    assert result.code == 1
    assert "no: t/m can't be used here: m can't be loaded: engine_args.sise is no setting" in result.out


def test_max_memory_per_model_holds_for_estimated_needs_too(cli: Cli, tmp_path: Path) -> None:
    text = one("framework: fake, engine_args: {bytes: 3GiB}", more="inference: {max_memory_per_model: 2GiB}")
    result = cli("validate", write(tmp_path, text), "--device", "12GiB")
    assert result.code == 1
    assert "it needs 3.0 GiB, and inference.max_memory_per_model allows 2.0 GiB" in result.out


def test_budgets_of_devices_the_machine_lacks_are_pointed_out(cli: Cli, tmp_path: Path) -> None:
    text = one(
        "framework: fake, vram_gb: 3", more="memory: {devices: {cuda:1: {budget: 2GiB}, cuda:0: {budget: 4GiB}}}"
    )
    result = cli("validate", write(tmp_path, text), "--device", "24GiB")
    assert result.code == 0
    assert "warning: memory.devices.cuda:1: the machine has no such device" in result.out
    assert ("cuda:0", "24.0", "GiB", "4.0", "GiB") in {tuple(line.split()[:5]) for line in result.out.splitlines()}


def test_every_problem_of_a_bad_file_is_one_line_and_one_entry(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path, one("framework: fake, vram_gb: -1, pined: true"))
    result = cli("validate", path, "--json")
    assert result.code == 2
    lines = result.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"taskrouter: {path}:1:") for line in lines)
    problems = result.data["error"]["problems"]
    assert {problem["path"].rpartition(".")[2] for problem in problems} == {"vram_gb", "pined"}
    assert "did you mean 'pinned'?" in result.err


@pytest.mark.parametrize(
    "device", ["24", "x", "24 GiB of it", "cpu=", "gpu=4GiB", "cuda:x=4GiB", "0GiB", "cpu=1GiB=2GiB", "=", ""]
)
def test_a_device_that_is_none_is_usage(cli: Cli, tmp_path: Path, device: str) -> None:
    result = cli("validate", write(tmp_path), "--device", device)
    assert result.code == 2
    assert "24GiB" in result.err or "22GiB" in result.err


def test_a_device_given_twice_is_usage() -> None:
    with pytest.raises(BadInput):
        machine_of(["cpu=1GiB", "cpu=2GiB"])


def test_devices_are_numbered_in_order_and_ram_is_its_own() -> None:
    machine = machine_of(["24GiB", "cpu=64GiB", "12GB"])
    assert {str(info.id): info.total for info in machine.devices} == {
        "cuda:0": 24 * GIB,
        "cuda:1": 12 * 10**9,
        "cpu": 64 * GIB,
    }


# --- what needs are known ---------------------------------------------------------------------------------------------


class Remembering(StillMachine):
    """A machine that measured everything to take 7 bytes."""

    async def remembered(self, key: object) -> Remembered | None:
        return Remembered(Footprint(7), 4.5)


def catalog_of(tmp_path: Path, text: str = FAKE) -> Catalog:
    return load_catalog(write(tmp_path, text), frameworks=Registry().frameworks())


async def needs_of(tmp_path: Path, text: str, machine: StillMachine, **how: float) -> Needs:
    elsewhere = bool(how.pop("elsewhere", False))
    return await find_needs(catalog_of(tmp_path, text), Registry(), machine, elsewhere=elsewhere, **how)


@pytest.mark.anyio
async def test_a_measurement_counts_before_an_estimate_but_not_on_another_machine(tmp_path: Path) -> None:
    machine = Remembering({CPU: GIB})
    here = await needs_of(tmp_path, one("framework: fake"), machine)
    assert list(here.known.values()) == [(7, "measured")]
    elsewhere = await needs_of(tmp_path, one("framework: fake"), machine, elsewhere=True)
    assert list(elsewhere.known.values()) == [(GIB, "estimated")]
    assert (list(here.load_s.values()), list(elsewhere.load_s.values())) == ([4.5], [])


@pytest.mark.anyio
async def test_a_model_that_cannot_be_loaded_is_barred_unless_only_this_machine_lacks_something(tmp_path: Path) -> None:
    text = one("framework: fake, engine_args: {fail: preflight}")
    here = await needs_of(tmp_path, text, StillMachine({CPU: GIB}))
    assert (list(here.known), list(here.unknown)) == ([], [])
    assert "scripted to fail its preflight" in "".join(here.barred.values())
    elsewhere = await needs_of(tmp_path, text, Remembering({CPU: GIB}), elsewhere=True)
    assert (list(elsewhere.barred), list(elsewhere.known.values())) == ([], [(7, "measured")])


@pytest.mark.anyio
async def test_a_check_that_takes_too_long_leaves_the_need_unknown(tmp_path: Path) -> None:
    class Slow(FakeBackend):
        async def preflight(self, request: ModelRequest) -> Preflight:
            await asyncio.Event().wait()
            raise AssertionError

    registry = Registry()
    registry.register("fake", Slow())
    catalog = catalog_of(tmp_path, one("framework: fake"))
    needs = await find_needs(catalog, registry, StillMachine({CPU: GIB}), bound_s=0.01)
    assert list(needs.unknown.values()) == ["its files could not be checked within 0.01 s"]


def test_a_remembered_measurement_is_used_and_named(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path, one("framework: fake", more="memory: {devices: {cpu: {budget: 4GiB}}}"))
    key = uses(load_catalog(path, frameworks=Registry().frameworks()))[0].request.key
    FootprintLedger().put(key, ThisMachine()._kind, Footprint(2 * GIB))
    (option,) = cli("validate", path, "--json").data["options"]
    assert (option["need_bytes"], option["source"]) == (2 * GIB, "measured")


@pytest.mark.parametrize(("set_to", "anyway"), [(None, False), ("0", False), ("1", True), ("true", True)])
def test_offline_lasts_as_long_as_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, set_to: str | None, anyway: bool
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if set_to is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", set_to)
    with pytest.raises(ZeroDivisionError), offline() as was:
        assert (was, constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"]) == (anyway, True, "1")
        raise ZeroDivisionError
    assert (constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")) == (before, set_to)


@pytest.mark.slow
def test_a_model_of_the_hub_that_is_not_here_yet_is_not_known_and_no_failure(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    path = write(
        tmp_path, "tasks: {t: {selected: m, options: {m: {model_id: no/such-model, framework: transformers}}}}"
    )
    result = cli("validate", path, "--json")
    assert (result.code, fits(result.data), result.data["all_resident"]) == (0, {"t/m": "not known"}, False)
    assert result.data["options"][0]["need_bytes"] is None
    assert cli("validate", path, "--all-resident").code == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = cli("validate", path)
    assert offline.code == 1, "it can't be fetched, by the user's own wish"
    assert "HF_HUB_OFFLINE" in offline.out


def test_what_the_file_says_of_an_option_to_people_is_shown_to_them(cli: Cli, tmp_path: Path) -> None:
    option = "{model_id: a, framework: fake, vram_gb: 1, speed: brisk, fps: 52, description: finds all}"
    file = write(tmp_path, f"tasks: {{t: {{selected: a, options: {{a: {option}}}}}}}")
    (shown,) = cli("validate", file, "--device", "24GiB", "--json").data["options"]
    assert shown["about"] == "brisk, 52 fps: finds all"
    assert "brisk, 52 fps: finds all" in cli("validate", file, "--device", "24GiB").out


def test_a_kind_that_the_model_can_not_do_is_no_fit(cli: Cli, tmp_path: Path) -> None:
    option = "{model_id: a, framework: fake, vram_gb: 1, engine_args: {verbs: [classify]}}"
    file = write(tmp_path, f"tasks: {{t: {{kind: chat, selected: a, options: {{a: {option}}}}}}}")
    result = cli("validate", file, "--device", "24GiB", "--json")
    assert result.code == 1
    (shown,) = result.data["options"]
    assert (shown["fit"], shown["why"]) == (
        "can't be used here",
        "the task is of kind chat, and this model can only classify",
    )


def test_options_that_are_one_model_and_declare_different_needs_are_warned_of(cli: Cli, tmp_path: Path) -> None:
    task = "  {}: {{kind: chat, selected: m, options: {{m: {{model_id: m, framework: fake, vram_gb: {}}}}}}}\n"
    write(tmp_path, f"tasks:\n{task.format('a', 1)}{task.format('b', 2)}")
    told = "these options are one model and declare different vram_gb (a.m 1, b.m 2): the largest is used"
    assert f"warning: {told}" in cli("validate", "--device", "8GiB").out
    assert cli("validate", "--device", "8GiB", "--json").data["warnings"][-1]["message"] == told
