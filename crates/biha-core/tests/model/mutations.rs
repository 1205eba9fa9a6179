//! Each rule is taken out once, and the property that needs it must fail. The names in capitals are the rules of
//! consensus.md that are marked there.

use super::mutation::Mutation;
use super::properties::{
    s1_one_leader as s1, s2_one_gate as s2, s3_no_loss as s3, s4_timelines as s4, s5_memory as s5,
    s6_configuration as s6,
};
use super::safety::bites;
use super::scenario::Scenario;
use super::scenarios as in_;

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident: $mutation:ident in $scenario:ident, $faults:literal breaks $property:ident;)*) => {
        $($(#[$doc])* #[test] fn $name() {
            let model = Scenario { mutation: Some(Mutation::$mutation), ..in_::$scenario() };
            bites(model, $faults, $property::NAME);
        })*
    };
}

mutations! {
    /// Durable state, before any word leaves.
    a_vote_is_written_before_it_is_told: ToldBeforeWritten in failover, 1 breaks s5;
    /// A file that is missing is not this node's memory.
    a_node_without_memory_does_not_come_back: MemoryLost in failover, 1 breaks s5;
    /// A start number lower than one already seen is refused.
    older_lives_are_not_heard: OldLivesHeard in put_back, 2 breaks s3;
    /// Or equal to but different from one already seen.
    second_copies_are_not_heard: SecondCopiesHeard in put_back_by_one, 2 breaks s3;
    /// By whoever has seen it, in whichever life.
    lives_that_were_met_are_remembered: MetForgotten in put_back, 2 breaks s1;

    /// Whoever receives a heartbeat refuses to vote or stand for as long as it promises.
    heartbeats_bind: StickinessOff in outages, 1 breaks s2;
    /// After each start a node is silent for the longest promise it ever gave.
    promises_outlive_a_start: PromisesForgotten in cut_off, 2 breaks s2;
    /// The lease is shorter than the promise.
    leases_are_shorter_than_promises: LeaseTooLong in outages, 1 breaks s2;
    /// By as much as clocks may differ.
    leases_leave_a_margin: LeaseWithoutMargin in outages, 1 breaks s2;

    /// Before yes, a WAL voter stops receiving.
    receivers_stop_before_a_vote: ReceiverNotStopped in lossless, 1 breaks s3;
    /// Durably: every start begins without a leader to receive from; never again from one of a lower term.
    receivers_stay_stopped_over_a_start: ReceiverKeptOverStart in cut_off_lossless, 1 breaks s3;
    /// A server in production never votes and never stands.
    servers_in_production_do_not_vote: ProductionHidden in respawn_lossless, 2 breaks s3;
    /// No to a candidate whose position is below the voter's.
    positions_are_compared: PositionNotCompared in lossless, 1 breaks s3;
    /// By timeline first.
    positions_are_compared_by_timeline_first: TimelineNotCompared in two_tails, 1 breaks s3;
    /// At the moment it persists its own vote a candidate passes the same checks: WAL that nobody elected.
    wal_that_nobody_elected_does_not_stand: UnelectedWalForgotten in by_hand, 2 breaks s3;

    /// The timeline number is the term.
    timeline_numbers_are_terms: NextFreeTimeline in change_of_sides, 2 breaks s4;
    /// Every new term starts from a standby and opens a new timeline.
    new_terms_open_new_timelines: TimelineGoesOn in outages, 2 breaks s4;

    /// No to a candidate whose configuration is older.
    configurations_are_compared: ConfigNotCompared in missed_change, 2 breaks s6;
    /// A new leader accepts no change until a quorum has the newest configuration under its own term.
    new_leaders_republish_first: RepublishNotAwaited in two_changes, 1 breaks s6;

    /// The owner of the control sockets shuts the gate before closing any.
    the_gate_dies_before_the_good_bye: GateOutlivesController in outages, 1 breaks s2;
    /// A starting controller first zeroes gate, lease and acknowledgements.
    a_start_shuts_the_gate: WordKeptOverStart in respawn, 2 breaks s2;
    /// No incarnation resumes a leadership that it did not win itself.
    leaderships_are_not_resumed: LeadershipResumed in respawn, 2 breaks s2;
    /// A candidate's claim is never believed.
    claims_are_not_believed: ClaimBelieved in outages, 1 breaks s2;

    /// A cancelled hand-over opens again only on acknowledgements that carry the new number.
    a_cancelled_hand_over_reopens_on_new_words: CancelledHandoverReopens in unanswered_hand_over, 1 breaks s2;
    /// A voter honours the exemption only for the number that it now knows.
    a_cancelled_exemption_is_over: CancelledExemptionKept in unanswered_hand_over, 1 breaks s2;
}

/// A bare "connection refused" is no proof where a firewall can refuse on behalf of a living leader.
#[test]
fn refusals_prove_nothing() {
    let mut model = in_::refused();
    model.options.trust_refused = true;
    model.mutation = Some(Mutation::RefusalTrusted);
    bites(model, 2, s2::NAME);
}

/// Lossless only if k + 1 + nquorum is more than the number of all voters, referees without WAL included.
#[test]
fn referees_count_as_voters() {
    let model = in_::five_with_two_referees();
    assert!(!model.config.lossless().0 && in_::lossless().config.lossless().0);
    bites(Scenario { mutation: Some(Mutation::RefereesNotCounted), ..model }, 1, s3::NAME);
}
