"""Case 25: every key of models.yaml observably acts, or says that it doesn't yet. The list comes from the schema."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskrouter.backends.fake import FakeModel
from taskrouter.config.not_yet import NOT_YET
from taskrouter.manager import ModelManager, StillMachine
from taskrouter.verbs import ClassifyRequest, Label
from tests.manager.test_keys import ROWS
from tests.test_docs_models_yaml import SCHEMA

TESTS = Path(__file__).parent

SHOWN_BY = {
    "tasks.*.options.*.model_id": "test_a_folder_is_found_beside_the_configuration",
    "tasks.*.options.*.framework": "test_an_unknown_framework_names_the_nearest_and_the_plug_in_point",
    "tasks.*.options.*.revision": "test_keys_that_could_do_nothing_are_refused",
    "tasks.*.options.*.quantization": "test_a_gpu_that_cannot_is_named_before_anything_is_fetched",
    "tasks.*.options.*.dtype": "test_the_estimate_follows_dtype_context_and_devices",
    "tasks.*.options.*.max_context": "test_max_context_bounds_prompt_and_answer",
    "tasks.*.options.*.isolation": "test_where_a_model_lives_is_its_options_word",
    "tasks.*.options.*.trust_remote_code": "test_code_in_the_checkpoint_needs_the_key_that_allows_it",
    "tasks.*.options.*.engine_args": "test_known_arguments_pass",
    "tasks.*.options.*.command": "test_the_template_is_filled_in_and_the_environment_is_the_options",
    "tasks.*.options.*.env": "test_the_template_is_filled_in_and_the_environment_is_the_options",
    "tasks.*.options.*.health": "test_the_health_path_of_the_option_says_when_it_is_ready",
    "tasks.*.options.*.sleep_calls.sleep": "test_a_command_that_can_sleep_makes_room_by_sleeping",
    "tasks.*.options.*.sleep_calls.wake": "test_a_command_that_can_sleep_makes_room_by_sleeping",
    "engines.*.python": "test_an_interpreter_that_is_none_is_refused_with_the_command_that_makes_one",
    "engines.*.hang_timeout_s": "test_a_model_that_hangs_is_given_up_within_its_bound_or_costs_only_its_own_slots",
    "tasks.*.options.*.speed": "test_what_the_file_says_of_an_option_to_people_is_shown_to_them",
    "tasks.*.options.*.fps": "test_what_the_file_says_of_an_option_to_people_is_shown_to_them",
    "tasks.*.options.*.description": "test_what_the_file_says_of_an_option_to_people_is_shown_to_them",
    "tasks.*.options.*.provider": "test_an_external_option_is_described_and_its_key_is_never_shown",
    "tasks.*.options.*.api_endpoint": "test_an_external_option_is_described_and_its_key_is_never_shown",
    "tasks.*.options.*.requires_api_key": "test_an_external_option_is_described_and_its_key_is_never_shown",
    "inference.max_memory_per_model": "test_option_over_the_limit_for_one_model_is_refused",
    "inference.max_batch_size": "test_as_many_callers_get_a_lease_as_may_be_answered_together",
    "inference.default_batch_size": "test_pieces_of_a_long_recording_are_heard_together_where_the_file_says_so",
    "pipelines": "test_a_pipeline_of_the_file_loads_what_comes_next",
    "memory.host_budget": "test_a_model_sleeps_within_the_budget_of_the_file",
    "tasks.*.options.*.sleep": "test_who_can_sleep_is_known_from_the_request",
    "memory.policy": "test_the_policy_of_the_file_decides_who_goes",
    "telemetry.record_trace": "test_requests_and_decisions_are_recorded_where_the_file_says",
    "memory.share": "test_a_gpu_may_be_shared_where_the_file_says_so",
    "tasks.*.fallback": "test_an_option_that_can_not_fit_is_passed_over_and_the_answer_says_so",
    "tasks.*.when_cold": "test_when_cold_decides_what_a_request_does_while_the_selected_one_loads",
    "tasks.*.options.*.api_key_env": "test_the_key_is_read_when_it_is_needed_from_the_variable_that_the_file_names",
    "tasks.*.options.*.timeout_s": "test_a_provider_that_does_not_answer_within_timeout_s_is_passed_over",
    "tasks.*.options.*.max_retries": "test_the_last_option_left_is_asked_again_as_often_as_the_file_says",
    "tasks.*.options.*.price.input_per_mtok": "test_what_calls_cost_is_recorded_from_the_options_price",
    "tasks.*.options.*.price.output_per_mtok": "test_what_calls_cost_is_recorded_from_the_options_price",
    "providers.*.api_key_env": "test_the_key_is_read_when_it_is_needed_from_the_variable_that_the_file_names",
    "providers.*.daily_budget_usd": "test_a_spent_budget_passes_its_provider_over",
    "providers.*.requests_per_minute": "test_a_written_limit_is_waited_for_or_passed_on_and_never_met",
    "providers.*.max_connections": "test_the_pool_of_a_provider_is_the_files",
    "providers.*.connect_timeout_s": "test_the_pool_of_a_provider_is_the_files",
    "media.roots": "test_the_limits_of_the_file_reach_every_call",
    "media.max_bytes": "test_the_limits_of_the_file_reach_every_call",
    "media.max_pixels": "test_the_limits_of_the_file_reach_every_call",
    "media.max_seconds": "test_the_limits_of_the_file_reach_every_call",
    "media.max_frames": "test_the_limits_of_the_file_reach_every_call",
    "media.remote": "test_the_limits_of_the_file_reach_every_call",
    "telemetry.service_name": "test_traces_go_where_the_file_says_under_the_name_it_says",
    "telemetry.otlp_endpoint": "test_traces_go_where_the_file_says_under_the_name_it_says",
    "server.host": "test_it_listens_where_the_file_says",
    "server.port": "test_it_listens_where_the_file_says",
    "server.api_keys_env": "test_keys_come_from_the_variables_and_the_file_that_the_server_section_names",
    "server.admin_key_env": "test_keys_come_from_the_variables_and_the_file_that_the_server_section_names",
    "server.api_keys_file": "test_keys_come_from_the_variables_and_the_file_that_the_server_section_names",
    "media.allowed_hosts": "test_the_limits_of_the_file_reach_every_call",
}
"""Keys that no row of the manager's table covers, and the test that shows each."""


def leaves() -> list[str]:
    return [path for path in SCHEMA if not any(other.startswith(path + ".") for other in SCHEMA)]


def acts_later(path: str) -> bool:
    return any(path == marked or path.startswith(marked + ".") for marked in NOT_YET)


def in_a_row(path: str) -> bool:
    rows = {name for name, *_ in ROWS}
    return path in rows or (path.startswith("tasks.") and path.split(".")[-1] in rows)


@pytest.mark.parametrize("path", leaves())
def test_every_key_is_shown_to_act_or_is_marked_as_not_acting_yet(path: str) -> None:
    assert acts_later(path) + in_a_row(path) + (path in SHOWN_BY) == 1, path


def test_every_test_that_is_said_to_show_a_key_is_there() -> None:
    texts = "\n".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    there = set(re.findall(r"def (test_\w+)", texts))
    assert set(SHOWN_BY.values()) <= there
    assert SHOWN_BY.keys() <= SCHEMA.keys()


def test_the_limits_of_the_file_reach_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ClassifyRequest] = []

    async def remember(self: FakeModel, verb: str, request: Any) -> Any:
        asked.append(request)
        return (Label("a", 1.0),)

    monkeypatch.setattr(FakeModel, "call", remember)
    media = {"roots": ["pictures"], "max_bytes": "3MiB", "max_pixels": 77, "max_seconds": 5, "max_frames": 6}
    media |= {"remote": True, "allowed_hosts": ["media.example"]}
    option = {"model_id": "m", "framework": "fake", "vram_gb": 1, "engine_args": {"bytes": "1GiB"}}
    file = tmp_path / "models.yaml"
    file.write_text(yaml.safe_dump({"tasks": {"t": {"selected": "m", "options": {"m": option}}}, "media": media}))

    async def main() -> None:
        async with ModelManager(file, machine=StillMachine({"cuda:0": 4 << 30})) as manager:
            await (await manager.get_model("t")).classify("picture.png")

    asyncio.run(main())
    limits = asked[0].limits
    assert (limits.max_bytes, limits.max_pixels, limits.max_seconds, limits.max_frames) == (3 << 20, 77, 5.0, 6)
    assert (limits.remote, limits.allowed_hosts) == (True, ("media.example",))
    assert limits.roots == (str((tmp_path / "pictures").resolve()),)


@pytest.mark.parametrize(("policy", "gone"), [("lru", "slow"), ("cost_aware", "quick")])
def test_the_policy_of_the_file_decides_who_goes(tmp_path: Path, policy: str, gone: str) -> None:
    """Of two that would do, the least recently used, or the one that is back sooner."""
    load_s = {"slow": 0.2, "quick": 0.0, "new": 0.0}
    options = {
        name: {"model_id": name, "framework": "fake", "vram_gb": 4, "engine_args": {"bytes": "4GiB", "load_s": seconds}}
        for name, seconds in load_s.items()
    }
    tasks = {name: {"selected": name, "options": {name: option}} for name, option in options.items()}
    file = tmp_path / "models.yaml"
    memory = {"policy": policy, "min_residency_s": 0, "claim_s": 0.01}
    inference = {"warmup_on_startup": False, "offload_threshold": 1.0}
    file.write_text(yaml.safe_dump({"tasks": tasks, "memory": memory, "inference": inference}))

    async def main() -> set[str]:
        async with ModelManager(file, machine=StillMachine({"cuda:0": 8 << 30})) as manager:
            for name in ("slow", "slow", "quick", "new"):
                async with manager.lease(name):
                    pass
            return {"slow", "quick"} - set(manager.loaded_models)

    assert asyncio.run(main()) == {gone}
