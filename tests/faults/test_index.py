"""Where it is shown: each defect of the original, each promise of durability, and tests that would see it.

The tests are elsewhere unless they are short; this file keeps the list and that what it names is there.
"""

import ast
import functools
import json
import threading
from pathlib import Path

import pytest
import trio

from edgeorch.model import PeerState
from edgeorch.model import TaskState as T
from edgeorch.testing.fleet import ADMIN, VirtualFleet

TESTS = Path(__file__).parents[1]
HERE = "faults/test_index.py"
STARTED = {
    "ServiceName": "x",
    "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": ["true"]}],
    "StatusCallbackURI": "",
}

DEFECTS = {
    # Correctness
    "request 1025 and all after it fail until a restart": [
        f"{HERE}::test_no_request_is_one_too_many",
    ],
    "two requests at once get one number": [
        f"{HERE}::test_requests_at_once_have_numbers_of_their_own",
    ],
    "success is answered although the target refused or died": [
        "unit/test_dispatch.py::test_a_refusal_goes_to_the_next_best_and_costs_no_attempt",
        "unit/test_dispatch.py::test_an_offer_that_never_left_goes_to_the_next_best",
        "api/test_rest_api.py::test_a_service_that_no_node_takes_is_cancelled",
    ],
    "one odd answer of a peer ends the daemon": [
        "node/test_odd_peers.py::test_odd_answers_and_questions",
    ],
    "a program that is not there is never told": [
        "node/test_bad_input.py::test_a_missing_program",
        "unit/test_dispatch.py::test_a_missing_program_ends_with_a_reason",
    ],
    "a container's exit code is lost": [
        "node/test_callbacks.py::test_a_task_of_the_original_api_is_told_in_its_words",
    ],
    "no second choice": [
        "node/test_fleet.py::test_a_killed_target_is_replaced",
    ],
    "a dead peer delays every request": [
        f"{HERE}::test_a_dead_peer_delays_nothing",
    ],
    "round trips are forgotten every minute": [
        "unit/test_membership_table.py::test_round_trips_are_averaged",
    ],
    "the busier node has the better score": [
        "unit/test_scoring.py::test_idler_is_better",
        "unit/test_scoring.py::test_nearer_is_better",
    ],
    "SelfSelection: false means true": [
        "api/test_rest_api.py::test_self_selection",
    ],
    "half of a peer's facts make it unusable": [
        "unit/test_membership_table.py::test_older_facts_do_not_replace_newer",
    ],
    "only a peer's first address is tried": [
        "unit/test_wire_links.py::test_a_slow_address_is_overtaken",
    ],
    "the caller is mistaken for another one": [
        "unit/test_auth.py::test_a_token",
    ],
    "numbers of requests begin again with the process": [
        "unit/test_clock_jumps.py::test_no_service_id_comes_again_with_the_clock_set_back",
        f"{HERE}::test_numbers_go_on_after_a_restart",
    ],
    # Discovery
    "peers never expire": [
        "unit/test_membership_table.py::test_silence_makes_suspect_then_dead",
        "node/test_fleet.py::test_stopped_nodes_are_gone_at_once_and_dead_ones_soon",
    ],
    "ordinary browsers see nothing": [
        "node/test_mdns.py::test_ordinary_browsers_see_the_nodes",
    ],
    "a changed address drops everybody": [
        "node/test_mdns.py::test_a_changed_address_is_announced_and_used",
    ],
    "anybody can announce anything": [
        "node/test_mdns.py::test_forgers_and_noise_do_no_harm",
    ],
    # Security
    "any host on the network may run anything": [
        "node/test_strangers.py::test_no_certificate",
        "unit/test_policy.py::test_what_reaches_beyond_the_container",
    ],
    "who asks is what the request says": [
        "node/test_strangers.py::test_a_node_that_claims_to_be_another",
        "unit/test_policy.py::test_who_may_ask_for_a_listed_service",
    ],
    "plain HTTP on all interfaces": [
        "api/test_rest_server.py::test_plain_http_from_elsewhere_is_told_to_use_tls",
    ],
    "any page in a browser may post": [
        "unit/test_auth.py::test_what_a_page_of_another_site_would_send",
    ],
    "failed authentication is a 200, a malformed token a crash": [
        "api/test_rest_api.py::test_an_unknown_token",
        "unit/test_auth.py::test_no_header_crashes",
    ],
    "keys that everybody may read": [
        "unit/test_store_sqlite.py::test_nobody_else_may_read_the_files",
    ],
    "roles that nobody can change, checked nowhere else": [
        "api/test_rest_api.py::test_least_roles",
    ],
    "only the end of an image's digest is looked at": [
        "unit/test_policy_images.py::test_entries",
    ],
    "old TLS, and any identity": [
        "node/test_strangers.py::test_old_tls",
        "node/test_strangers.py::test_a_self_signed_certificate",
    ],
    "commands are compared by their base name": [
        "unit/test_policy.py::test_a_service_of_the_original",
    ],
    # Robustness
    "no timeout and no limit of a body": [
        "api/test_rest_server.py::test_half_sent_head_gets_408",
        "api/test_rest_server.py::test_too_large_body_gets_413_without_being_read",
    ],
    "the file is opened and locked for each access": [
        "unit/test_store_sqlite.py::test_calls_in_flight_share_transactions",
    ],
    "waits for ever for a notification": [
        "unit/test_dispatch.py::test_the_deadline_ends_every_task",
    ],
    "a restart forgets every job, and children go on alone": [
        "node/test_fleet.py::test_a_killed_origin_comes_back_with_every_task",
        "node/test_fleet.py::test_a_killed_target_daemon_comes_back_to_its_attempt",
    ],
    "a long line ends the reader": [
        f"{HERE}::test_a_line_of_a_mebibyte",
    ],
}

PROMISES = {
    "a 202 is on the disk": [
        "node/test_power_loss.py::test_what_was_answered_survives_a_power_cut",
        "node/test_fleet.py::test_a_killed_origin_comes_back_with_every_task",
    ],
    "results wait for their origin": ["unit/test_dispatch.py::test_a_result_waits_for_its_origin"],
    "a target's daemon restarts and adopts": [
        "node/test_fleet.py::test_a_killed_target_daemon_comes_back_to_its_attempt",
        "node/test_container_driver.py::test_an_end_while_the_daemon_was_away_is_found",
    ],
    "what ended with its runner or host is retried": [
        "node/test_native_driver.py::test_a_killed_runner_is_replaced_and_what_it_ran_is_lost",
        "node/test_fleet.py::test_a_killed_target_is_replaced",
    ],
    "a late result never overwrites the valid one": [
        "unit/test_dispatch.py::test_a_cut_off_target_ends_the_attempt_and_its_late_result_is_superseded",
    ],
    "stop, keep and at most once": [
        "node/test_cut_off.py::test_stop_ends_the_attempt_on_its_own_side_without_the_daemon",
        "node/test_cut_off.py::test_keep_lets_it_finish_and_report",
        "node/test_cut_off.py::test_at_most_once_is_at_most_once",
        "node/test_cut_off.py::test_an_offer_that_a_frozen_node_finds_when_it_goes_on_is_too_old",
    ],
    "the end of a task is told once": [
        "unit/test_later_writes.py::test_what_was_written_although_its_caller_had_gone_is_not_written_again",
    ],
    "a restored node runs nothing again": [
        "node/test_restored.py::test_what_ended_after_the_backup_is_not_run_again",
        "unit/test_ended_runs.py::test_what_had_ended_is_not_run_again",
        "unit/test_ended_runs.py::test_an_attempt_that_the_backup_does_not_know_is_taken_up",
    ],
    "callbacks at least once, in order": [
        "node/test_callbacks.py::test_what_was_not_taken_goes_out_after_a_restart",
        "node/test_callbacks.py::test_a_receiver_that_is_not_there_yet_is_tried_again",
        "node/test_callbacks.py::test_tasks_do_not_wait_for_each_other_but_keep_their_own_order",
        "unit/test_dispatch.py::test_a_callback_that_a_full_disk_refused_goes_out_once_there_is_room",
    ],
    "full disk": [
        "unit/test_dispatch.py::test_a_full_disk_accepts_nothing_and_loses_nothing",
        "node/test_bad_input.py::test_a_full_disk",
        "unit/test_placing_on_bad_disks.py::test_a_waiting_task_whose_start_here_the_disk_refused_is_tried_again",
        "unit/test_dispatch.py::test_a_parent_is_cancelled_whole_although_the_disk_refuses",
    ],
    "read-only file system": [
        "node/test_damaged_store.py::test_a_file_system_that_turns_read_only_loses_nothing",
        "node/test_bad_input.py::test_a_read_only_state_folder",
    ],
    "corrupt database and log": [
        "node/test_damaged_store.py::test_a_damaged_database_is_told_set_aside_and_the_node_works",
        "unit/test_store_sqlite.py::test_a_damaged_log_is_told_and_what_is_before_the_damage_is_kept",
        "unit/test_store_sqlite.py::test_bytes_flipped_anywhere_never_crash_a_start",
    ],
    "clock jumps": [
        "unit/test_dispatch.py::test_a_clock_that_jumps_changes_no_timeout_lease_or_deadline",
        "node/test_callbacks.py::test_a_clock_that_jumps_drops_nothing",
        "node/test_wrong_clock.py::test_a_wrong_clock_is_told_and_healed_without_a_restart",
        "node/test_wrong_clock.py::test_a_clock_set_over_a_restart_ends_nothing_early_and_forgets_nothing",
        "unit/test_clock_jumps.py::test_no_timeout_or_deadline_moves",
        "unit/test_clock_jumps.py::test_no_callback_has_the_key_of_an_earlier_one",
    ],
    "out of file descriptors": ["node/test_out_of_files.py::test_no_descriptor_is_left"],
    "out of memory": [
        "node/test_bad_services.py::test_a_service_out_of_memory_ends_alone",
        "node/test_container_driver.py::test_out_of_memory",
    ],
    "fork bomb": [
        "node/test_bad_services.py::test_a_fork_bomb_is_bounded_and_ended_whole",
        "node/test_bad_services.py::test_a_fork_bomb_of_root_is_bounded_and_ended_whole",
    ],
    "flood of output": [
        "node/test_bad_services.py::test_a_flood_of_output_is_capped_and_the_node_answers_meanwhile",
    ],
    "SIGTERM is ignored": [
        "node/test_bad_services.py::test_a_service_that_ignores_sigterm_is_killed_with_all_it_has_started",
    ],
    "one seed, one trace": ["simulation/test_simulation.py::test_a_seed_gives_the_same_trace_twice"],
    "the simulation can fail": [
        "simulation/test_simulation.py::test_what_the_load_is_there_to_find_is_found",
        "simulation/test_simulation.py::test_a_disk_that_forgets_what_it_has_confirmed_is_found",
    ],
}


@functools.cache
def names_in(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


@pytest.mark.parametrize("shown_by", [*DEFECTS.values(), *PROMISES.values()], ids=[*DEFECTS, *PROMISES])
def test_what_the_list_names_is_there(shown_by):
    for pointer in shown_by:
        path, _, name = pointer.partition("::")
        assert name in names_in(TESTS / path), pointer


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    from real_fleet import RealFleet

    fleet = RealFleet(tmp_path_factory.mktemp("original"), "one")
    try:
        yield fleet.nodes["one"].start()
    finally:
        fleet.close()


def ask_as_the_original(node, body=STARTED):
    status, answer = node.request("POST", "/api/v1/orchestration/services", body)
    assert status == 200
    return json.loads(answer)


def test_no_request_is_one_too_many(node):
    nothing = {**STARTED, "ServiceInfo": [{"ExecutionType": "native", "ExecCmd": []}]}
    for _ in range(1100):
        assert ask_as_the_original(node, nothing)["Message"] != "ERROR_NONE"
    assert ask_as_the_original(node)["Message"] == "ERROR_NONE"


def test_requests_at_once_have_numbers_of_their_own(node):
    answers = []
    callers = [threading.Thread(target=lambda: answers.append(ask_as_the_original(node))) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len({answer["ServiceID"] for answer in answers}) == len(callers)


def test_numbers_go_on_after_a_restart(node):
    before = ask_as_the_original(node)["ServiceID"]
    node.kill()
    node.start()
    assert ask_as_the_original(node)["ServiceID"] > before


def test_a_line_of_a_mebibyte(node):
    task = node.ended(node.submit("sh", "-c", "head -c 1048576 /dev/zero | tr '\\0' x; echo; echo after"))
    assert task["state"] == "succeeded"
    status, output = node.request("GET", f"/api/v1/tasks/{task['id']}/output")
    assert (status, len(output)) == (200, (1 << 20) + len("\nafter\n"))


async def test_a_dead_peer_delays_nothing(autojump_clock, tmp_path, nursery):
    fleet = VirtualFleet(tmp_path)
    a, b = fleet.add("a"), fleet.add("b")
    for one in (a, b):
        await nursery.start(one.host.run)
        await nursery.start(one.run)
    b.crash(host=True)
    began = trio.current_time()
    task = await a.submit("true")
    assert trio.current_time() == began
    assert fleet.state_of(a.id, b.id) is PeerState.DEAD
    assert (await a.dispatch.wait(task.id, ADMIN, 60)).state is T.SUCCEEDED
