//! One scenario, one file: script and expected output together, in tests/scripts.
//! `UPDATE=1 cargo test -p biha-core --test scenarios` writes what now happens into the files; review the diff.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod script;
mod sim;

/// One test for each script, so that each can be run and fails by its name.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(#[test] fn $name() { script::run(stringify!($name)); })*
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    a_cancelled_exemption_elects_nobody
    a_cancelled_hand_over_opens_only_on_new_acknowledgements
    a_candidate_gives_way_to_a_vote_request
    a_candidate_picks_a_term_above_its_own_history_files
    a_candidate_tells_who_does_not_know_its_configuration
    a_candidate_votes_for_itself_by_the_same_rules
    a_change_is_judged_by_all_that_are_unsettled
    a_change_is_done_when_the_standbys_have_what_came_before
    a_change_that_could_lose_a_commit_is_refused
    a_change_without_a_quorum_has_an_unknown_outcome
    a_clean_stop_elects_when_the_stream_has_ended
    a_cluster_killed_at_once_comes_back_with_everything
    a_copy_is_made_when_the_operator_says_so
    a_copy_that_was_put_back_is_refused
    a_crashed_leader_rejoins
    a_demotion_does_not_wait_for_a_checkpoint
    a_failed_promotion_lets_another_node_try
    a_failover_lets_the_fullest_lead
    a_follower_whose_wal_is_gone_says_so
    a_follower_that_was_led_astray_starts_again
    a_good_bye_is_proof_of_death
    a_hanging_controller_fences_its_server
    a_host_frozen_for_30_seconds_is_fenced_when_it_thaws
    a_joining_node_votes_when_it_has_caught_up
    a_killed_controller_is_no_second_leader
    a_leader_elected_with_a_sick_disk_goes_on
    a_leader_that_dies_during_a_rewind_is_replaced
    a_leader_that_hears_a_higher_term_restarts_as_a_standby
    a_leader_that_gives_way_does_not_vote_while_it_is_promoted
    a_leader_that_is_refused_leads_no_more
    a_leader_with_a_sick_disk_hands_over
    a_lost_connection_drops_the_voter_from_the_lease
    a_new_leader_republishes_the_configuration
    a_new_voter_counts_as_synchronous_when_a_quorum_has_its_admission
    a_newer_incarnation_is_proof_of_death
    a_node_made_anew_is_heard_by_who_slept
    a_node_removed_while_it_was_away_is_told_when_it_is_back
    a_node_stays_joining_where_two_leaders_would_be_possible
    a_node_that_is_refused_stops
    a_node_that_was_copied_anew_follows
    a_node_whose_wal_is_gone_copies_the_leader
    a_number_taken_by_hand_is_never_taken_for_the_elected_one
    a_one_way_link_does_not_split_the_cluster
    a_pending_vote_is_looked_at_again_when_the_receiver_has_stopped
    a_pre_vote_raises_no_term
    a_promotion_by_hand_opens_no_gate
    a_promotion_that_opened_another_timeline_does_not_count
    a_reclone_that_failed_waits_for_the_next_term
    a_reclone_that_was_hindered_is_tried_again
    a_referee_elects_with_the_survivor
    a_referee_keeps_a_cut_off_follower_from_taking_over
    a_referee_with_wal_keeps_what_it_received
    a_refused_connection_counts_where_it_is_trusted
    a_refused_connection_proves_nothing_by_default
    a_restarted_leader_does_not_wait_for_a_dead_node
    who_waits_for_a_silent_voter_keeps_its_turn
    a_starting_follower_waits_for_its_leader
    a_removed_node_comes_back_as_a_new_one
    a_removal_that_no_quorum_has_is_taken_back
    two_leaders_of_one_term_are_found_out_later
    a_removed_node_is_told_and_stops
    a_rewind_that_could_not_begin_leaves_a_voter
    a_rewind_that_failed_becomes_a_copy
    a_rewind_that_failed_is_an_error_until_it_is_reset
    a_rewind_that_was_hindered_is_tried_again
    a_rewind_waits_until_the_fork_is_replayed
    a_rewind_waits_until_the_leader_is_ready
    a_server_promoted_again_is_rewound_again
    a_server_in_production_neither_votes_nor_stands
    a_sick_leader_gives_up_where_the_others_can_elect
    a_sick_leader_without_a_successor_goes_on
    a_single_node_elects_itself
    a_smaller_promise_shortens_the_lease_first
    a_stale_heartbeat_is_answered_with_the_higher_term
    a_stalled_receiver_connects_again
    a_started_controller_is_silent
    a_starting_cluster_lets_the_fullest_lead
    a_stranger_changes_nothing
    a_switchover_goes_to_its_target
    a_switchover_is_asked_for_at_a_follower
    a_switchover_of_two_nodes_goes_to_its_target
    a_switchover_survives_the_loss_of_its_announcement
    a_switchover_whose_target_does_not_answer_is_cancelled
    a_synchronous_leader_opens_when_its_first_record_is_replicated
    a_term_that_is_too_low_is_named_and_asked_again
    a_timeline_opened_by_two_is_an_error
    a_vote_is_given_once_a_term
    a_vote_is_persisted_before_it_is_told
    a_vote_request_does_not_end_an_open_lease
    a_voter_that_every_commit_needs_is_not_taken_away
    a_whole_cluster_does_not_wait_for_ever
    a_whole_cluster_waits_for_every_position
    after_its_last_word_a_node_says_nothing
    among_equals_the_priority_decides
    an_acknowledgement_to_a_former_life_counts_nothing
    an_asynchronous_leader_does_not_wait_for_standbys
    an_explicit_nquorum_must_fit_the_voters
    an_nquorum_that_elects_two_is_announced_first
    an_nquorum_that_elects_two_is_replaced_at_every_voter
    an_older_configuration_is_refused_and_mended
    an_older_incarnation_is_not_heard
    an_older_nquorum_outlives_a_change_of_leader
    an_unelectable_node_votes_but_does_not_stand
    an_unfinished_reclone_neither_votes_nor_stands
    an_unfinished_rewind_neither_votes_nor_stands
    an_unknown_position_neither_votes_nor_stands
    autorewind_off_is_an_error_and_not_a_rewind
    back_to_rw_in_the_same_term_needs_no_promotion
    commands_are_forwarded_to_the_leader
    five_nodes_survive_the_loss_of_two
    followers_are_re_pointed_after_a_failover
    half_of_an_even_cluster_elects_nobody
    nquorum_one_of_two_takes_over_alone
    one_change_at_a_time
    one_leader_at_most_when_every_member_knows
    one_of_two_copies_is_refused
    parted_again_after_a_rewind_is_an_error
    proof_of_death_is_void_when_the_leader_is_heard_again
    quorums_stay_until_standbys_have_what_was_inherited
    removing_a_voter_that_may_hold_a_commit_alone_is_refused
    set_leader_refuses_what_makes_no_sense
    the_best_position_stands_first_and_wins
    the_end_of_the_lease_shuts_the_gate
    the_lease_comes_from_a_quorum_of_acknowledgements
    the_target_dies_after_the_leader_has_left
    the_timeline_gets_the_number_of_the_term
    three_nodes_elect_the_first
    too_few_live_nodes_make_a_leader_read_only
    two_leaders_of_one_term_are_settled
    wal_of_a_lower_term_is_received_no_more
    wal_that_arrives_is_a_sign_of_life_but_not_for_ever
    wal_that_ends_before_the_lower_bound_is_an_error
    wal_that_nobody_elected_wins_nothing
    what_others_count_on_cannot_be_reset
    who_holds_more_refuses_and_stands_itself
    who_was_led_says_so
    whoever_hears_the_leader_refuses
    without_a_leader_a_command_is_refused
}

#[test]
fn every_script_is_run() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(NAMES.contains(&name.trim_end_matches(".txt")), "{name} is not in the list");
    }
}
