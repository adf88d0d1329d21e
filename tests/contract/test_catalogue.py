"""Every row of the failure catalogue has a test that exists: groups A (arrival), B (content), C (sidecar and config), F
(deploy and serve), G (HTTP and monitor).

The rows are those of the design; what each asks for stands in the names of its tests.
"""

import ast
from pathlib import Path

import malformed

TESTS = {
    "A1": "test_daemon_intake:a_file_that_lay_there_before_the_start_waits_the_window_too",
    "A2": "test_daemon_runners:the_short_form_of_a_runner_counts_no_loss",
    "A3": "test_daemon_intake:names_of_unfinished_and_foreign_files_stay_and_are_listed",
    "A4": "test_daemon_intake:a_writer_that_keeps_the_file_open_is_waited_for",
    "A5": "test_worker_faults:a_file_that_changed_since_its_claim_is_held_and_not_trained",
    "A6": "test_validation_refusals:a_broken_off_transfer_is_called_one "
    "test_daemon_arrivals:a_whole_copy_under_the_name_of_a_refused_one_is_taken",
    "A7": "test_validation_sidecars:a_sidecar_that_lies_or_reaches_too_far_is_refused",
    "A8": "test_daemon_intake:a_file_that_lay_there_before_the_start_waits_the_window_too",
    "A9": "test_daemon_runners:the_short_form_of_a_runner_counts_no_loss "
    "test_daemon_arrivals:files_that_wait_keep_their_order_over_a_restart",
    "A10": "test_daemon_process:an_inbox_removed_and_made_again_is_watched_again "
    "test_daemon_process:a_symlinked_inbox_is_not_followed_and_a_folder_put_back_is_watched",
    "A11": "test_daemon_intake:the_same_name_with_other_content_becomes_a_second_job",
    "A12": "test_daemon_intake:the_same_bytes_under_another_name_are_done_as_a_duplicate",
    "A13": "test_worker_faults:a_file_that_changed_since_its_claim_is_held_and_not_trained",
    "A14": "test_daemon_intake:a_file_that_goes_away_between_seen_and_claimed_leaves_no_trace",
    "A15": "test_daemon_arrivals:two_spellings_of_one_name_are_two_files",
    "A16": "test_daemon_intake:odd_names_are_taken_and_shown_escaped "
    "test_validation_gate:odd_file_names_are_trained_and_shown_escaped",
    "A17": "test_daemon_intake:what_is_no_regular_file_stays_unread",
    "A18": "test_daemon_intake:what_is_no_regular_file_stays_unread",
    "A19": "test_daemon_intake:a_hard_link_is_copied_so_that_outside_writes_change_nothing "
    "test_daemon_arrivals:the_outside_name_of_a_hard_link_is_neither_changed_nor_removed",
    "A20": "test_daemon_arrivals:a_file_of_mode_000_stays_is_named_once_and_is_taken_when_its_mode_is_mended "
    "test_daemon_arrivals:a_file_of_another_owner_that_we_may_read_is_taken",
    "A21": "test_daemon_arrivals:an_empty_file_waits_the_window_before_it_is_refused "
    "test_validation_refusals:files_that_are_no_utf8_json_lines_are_refused",
    "A22": "test_daemon_process:an_inbox_on_another_filesystem_is_refused_at_the_start",
    "A23": "test_daemon_arrivals:dates_of_files_say_nothing_about_whether_they_are_complete",
    "A24": "test_daemon_intake_faults:a_hundred_thousand_names_are_scanned_without_being_opened",
    "A25": "test_daemon_arrivals:an_inbox_without_events_is_found_by_the_scan",
    "B1": "test_validation_malformed:a_malformed_file_is_refused_with_its_code_and_line",
    "B2": "test_validation_malformed:a_malformed_file_is_refused_with_its_code_and_line",
    "B3": "test_formats_strict_json:a_key_that_stands_twice_is_found_wherever_it_hides",
    "B4": "test_validation_malformed:a_malformed_file_is_refused_with_its_code_and_line",
    "B5": "test_formats_strict_json:sixty_four_levels_are_deep_enough_and_one_more_is_too_deep",
    "B6": "test_validation_malformed:a_malformed_file_is_refused_with_its_code_and_line",
    "B7": "test_validation_refusals:a_file_in_another_encoding_gets_the_line_that_converts_it",
    "B8": "test_validation_refusals:bom_crlf_and_a_missing_last_line_end_are_forgiven_and_noted",
    "B9": "test_validation_refusals:unicode_line_separators_inside_a_text_do_not_split_a_row",
    "B10": "test_validation_malformed:a_malformed_file_is_refused_with_its_code_and_line",
    "B11": "test_formats_jsonl:a_line_over_the_cap_is_refused_without_being_held_in_memory "
    "test_validation_refusals:megabytes_in_one_row_are_refused_without_being_encoded",
    "B12": "test_formats_readers:an_archive_bomb_is_refused_early_and_in_little_memory "
    "test_formats_readers:a_cut_file_is_refused "
    "test_formats_readers:packed_bytes_under_a_text_suffix_are_named_for_what_they_are",
    "B13": "test_validation_refusals:a_row_that_breaks_its_schema_is_named_by_line_and_field "
    "test_validation_refusals:turns_out_of_order_and_silent_answers_are_refused",
    "B14": "test_validation_refusals:special_tokens_in_a_message_stay_text_and_are_counted",
    "B15": "test_validation_content:duplicates_are_counted_and_more_than_half_refuses "
    "test_validation_content:balance_scripts_protocols_and_odd_characters_are_warned_about "
    "test_validation_content:a_limit_of_the_operator_turns_a_warning_into_a_refusal "
    "test_validation_refusals:a_row_over_max_length_follows_the_policy",
    "B16": "test_validation_refusals:bad_rows_are_set_aside_when_the_operator_says_so_and_only_up_to_the_limit",
    "C1": "test_lineage:without_a_sidecar_the_generator_is_manual",
    "C2": "test_daemon_arrivals:a_sidecar_that_comes_first_or_within_the_window_is_joined "
    "test_daemon_intake:a_late_sidecar_adds_lineage_and_nothing_else "
    "test_daemon_intake:a_sidecar_alone_stays_and_is_refused_after_a_day",
    "C3": "test_validation_sidecars:a_sidecar_that_lies_or_reaches_too_far_is_refused "
    "test_validation_sidecars:a_huge_or_linked_sidecar_is_refused_without_being_read "
    "test_validation_sidecars:unknown_generators_are_accepted_unless_the_operator_refuses_them",
    "C4": "test_validation_sidecars:paths_in_a_sidecar_are_ignored_and_its_priority_chooses_the_lane",
    "C5": "test_validation_sidecars:a_sidecar_that_lies_or_reaches_too_far_is_refused",
    "C6": "test_daemon_config_watch:a_bad_edit_is_refused_by_field_with_both_values_and_what_holds_goes_on "
    "test_worker_faults:another_base_or_method_in_the_same_run_is_refused_with_both_values",
    "C7": "test_daemon_config_watch:a_broken_file_at_the_start_names_the_last_one_that_was_taken "
    "test_daemon_process:a_broken_configuration_at_the_start_is_exit_2_with_one_line",
    "C8": "test_hosts:a_strange_value_is_refused_with_its_path",
    "C9": "test_daemon_control:when_all_stand_at_once_stop_wins_and_resume_lifts_the_pause "
    "test_daemon_control:odd_content_pauses_all_the_same "
    "test_daemon_control:a_control_file_larger_than_memory_is_read_to_4_kb "
    "test_daemon_control:links_folders_and_fifos_are_never_obeyed "
    "test_daemon_control:at_the_start_bare_commands_are_stale_and_pause_and_requests_are_not",
    "F1": "test_publish_chain:a_transfer_killed_halfway_shows_nothing_and_the_next_one_completes "
    "test_publish_chain:over_ssh_the_checkpoint_reaches_the_other_machine_and_a_foreign_host_key_stops_everything "
    "test_transport:ssh_asks_nobody_and_believes_known_hosts_only test_transport:each_failure_has_its_own_error "
    "test_transport:a_connection_that_fails_is_tried_again_after_pauses_that_double "
    "test_transport:what_no_second_try_can_mend_is_not_tried_again "
    "test_model_store:a_transfer_that_broke_off_is_no_verdict_on_the_checkpoint",
    "F2": "test_publish_chain:a_full_disk_on_the_serving_host_is_exit_4_with_both_sizes_and_nothing_is_left_behind",
    "F3": "test_serve_runners:no_damaged_bad_or_malicious_checkpoint_answers_anybody_or_runs_code "
    "test_model_store:every_single_bit_flip_and_truncation_is_noticed",
    "F4": "test_serve_runners:no_damaged_bad_or_malicious_checkpoint_answers_anybody_or_runs_code "
    "test_publish_chain:nothing_of_training_and_no_pickle_travels "
    "test_model_store:fields_that_run_or_fetch_code_are_refused_even_with_a_right_manifest "
    "test_foreign_checkpoints:files_and_fields_that_run_code_elsewhere_run_nothing_on_a_resume "
    "test_foreign_checkpoints:a_pickle_under_one_of_our_own_names_is_refused_unread",
    "F5": "test_serve_runners:no_damaged_bad_or_malicious_checkpoint_answers_anybody_or_runs_code "
    "test_chat_templates:a_broken_or_hostile_template_is_replaced_and_says_why",
    "F6": "test_serve_runners:no_damaged_bad_or_malicious_checkpoint_answers_anybody_or_runs_code "
    "test_publish_chain:a_judged_loss_that_the_server_cannot_reproduce_is_refused_and_the_old_model_serves "
    "test_model_slot:a_model_ten_times_slower_than_the_serving_one_is_stopped",
    "F7": "test_publish_chain:streams_in_flight_finish_on_the_model_they_began_with_through_many_swaps",
    "F8": "test_publish_chain:publishing_what_serves_already_changes_nothing "
    "test_publish_chain:two_deployments_at_once_take_their_turns_and_a_rollback_to_what_is_gone_is_a_clear_no",
    "F9": "test_publish_chain:a_server_restarts_on_current_and_falls_back_to_previous_when_current_is_broken "
    "test_publish_chain:"
    "an_adapter_whose_base_served_as_a_whole_model_survives_a_restart_and_sends_its_base_once",
    "F10": "test_model_store:a_manifest_of_another_schema_is_refused",
    "F11": "test_serve_hostile:a_caller_that_leaves_stops_its_generation "
    "test_scheduler:a_caller_that_has_left_costs_no_further_step_though_nobody_says_so "
    "test_serve_hostile:greedy_wishes_are_4xx_naming_the_field "
    "test_serve_hostile:broken_bodies_are_400_in_the_agreed_shape test_protocol:a_bad_field_is_a_400_that_names_it",
    "F12": "test_serve_hostile:a_flood_gets_503_with_retry_after_while_health_answers "
    "test_room:a_crowd_of_long_requests_stays_within_the_memory_set_aside_and_the_rest_is_refused",
    "G1": "test_guard:a_key_with_any_bytes_is_compared_not_crashed_on "
    "test_guard:other_authorization_headers_fit_nothing test_serve_hostile:headers_and_addresses_of_any_size_are_4xx "
    "test_api_guard:a_key_is_compared_as_bytes_and_a_wrong_one_is_401",
    "G2": "test_serve_hostile:a_public_bind_without_keys_is_refused "
    "test_monitor_server:a_public_bind_without_a_key_is_refused_in_one_line",
    "G3": "test_serve_hostile:foreign_hosts_and_origins_are_refused_on_every_method_and_nothing_allows_them "
    "test_serve_hostile:broken_bodies_are_400_in_the_agreed_shape test_api_guard:only_looking_is_possible",
    "G4": "test_serve_hostile:foreign_hosts_and_origins_are_refused_on_every_method_and_nothing_allows_them",
    "G5": "test_serve_hostile:other_paths_are_404_as_json "
    "test_api_guard:nothing_outside_the_list_of_page_files_is_read",
    "G6": "test_monitor_browser:nothing_that_came_in_a_file_runs_or_becomes_an_element "
    "test_api_guard:json_never_comes_as_html_whatever_a_file_is_called",
    "G7": "test_serve_hostile:what_the_web_server_refuses_by_itself_is_told_in_the_agreed_shape_too "
    "test_serve_hostile:lengths_that_lie_and_packed_bodies_are_4xx_and_the_next_request_is_answered "
    "test_monitor_server:malformed_requests_are_refused_and_never_a_failure",
    "G8": "test_serve_runners:health_answers_beside_streams_and_bad_connections "
    "test_monitor_server:health_answers_within_a_second_under_streams_half_open_and_dripping_clients "
    "test_api_guard:the_cap_on_streams_is_503_and_a_closed_one_frees_its_place",
    "G9": "test_serve_hostile:methods_that_no_route_knows_are_405_in_the_agreed_shape "
    "test_serve_hostile:headers_and_addresses_of_any_size_are_4xx "
    "test_api_guard:an_unknown_address_is_a_json_error_without_a_traceback",
    "G10": "test_serve_openai:prompts_and_keys_are_in_no_log_no_metric_no_view_and_no_process_list",
    "G11": "test_logs:a_record_stays_one_line_whatever_it_names "
    "test_serve_hostile:headers_and_addresses_of_any_size_are_4xx",
    "G12": "test_guard:wrong_keys_run_out test_api_guard:guessing_keys_is_slowed_and_the_right_key_still_works",
}
_SIZES = {"A": 25, "B": 16, "C": 9, "F": 12, "G": 12}  # B17 is speed: scripts/bench/ingest.py, never a timed test
ROWS = [f"{group}{n}" for group, size in _SIZES.items() for n in range(1, size + 1)]


def known_tests() -> set[str]:
    """`file:name` of every test function of the suite, without their prefixes' `test_`."""
    found = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found.add(f"{path.stem}:{node.name.removeprefix('test_')}")
    return found


def test_every_row_has_a_test_that_exists() -> None:
    assert list(TESTS) == ROWS
    known = known_tests()
    assert {row: name for row, names in TESTS.items() for name in names.split() if name not in known} == {}


def test_the_malformed_corpus_holds_the_kinds_that_the_rows_name() -> None:
    names = " ".join(case.name for case in malformed.cases())
    kinds = {
        "B1": ["trailing comma", "single quotes", "two objects"],
        "B2": ["NaN", "Infinity", "1e400"],
        "B4": ["lone high surrogate"],
        "B5": ["depth 65", "depth 100,000"],
        "B6": ["integer of 5,000 digits"],
        "B7": ["overlong NUL", "surrogate as bytes"],
        "B10": ["NUL escaped"],
    }
    assert {row: kind for row, listed in kinds.items() for kind in listed if kind not in names} == {}
