//! The faults, and what ends them.

use biha_core::*;

use super::run::Run;
use super::sim::{ServerMode, say};

/// What may go wrong, by its name in the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ControllerKilled,
    PostmasterKilled,
    PowerLost,
    StateFileLost,
    Stopped,
    ClusterPowerLost,
    ClusterControllersKilled,
    CutOneWay,
    CutBothWays,
    ControlCut,
    Isolated,
    Parted,
    ConnectionReset,
    HostFrozen,
    ControllerHangs,
    DiskFull,
    PromotedByHand,
    CutOffFollowerStands,
    VoterForgets,
    DeposedLeaderVotes,
    OldLeaderReturns,
    QuorumsShift,
    MajorityAgain,
    PromotionBreaksOff,
    PromotionUnseen,
    Switchover,
    Parameter,
    Member,
    Repair,
}

use Fault::*;

/// How often each is chosen. Those that are missing are asked for.
const WEIGHTS: [(Fault, u64); 23] = [
    (ControllerKilled, 4),
    (PostmasterKilled, 4),
    (PowerLost, 4),
    (StateFileLost, 1),
    (Stopped, 3),
    (ClusterPowerLost, 1),
    (ClusterControllersKilled, 1),
    (CutOneWay, 5),
    (CutBothWays, 3),
    (ControlCut, 4),
    (Isolated, 5),
    (Parted, 3),
    (ConnectionReset, 3),
    (HostFrozen, 4),
    (ControllerHangs, 3),
    (DiskFull, 2),
    (PromotedByHand, 2),
    (CutOffFollowerStands, 3),
    (VoterForgets, 2),
    (DeposedLeaderVotes, 2),
    (Switchover, 8),
    (Parameter, 8),
    (Member, 6),
];

impl Run {
    /// One of them; which one is counted.
    pub fn fault(&mut self) -> Result<(), String> {
        if self.rng.below(5) < 2 {
            self.last_fault = Repair;
            self.repair();
            return Ok(());
        }
        let fault = match self.more {
            Some(more) if self.rng.one_in(2) => more,
            _ => self.some_fault(),
        };
        let (a, b) = (self.some_victim(), self.some_node());
        say!(self.cluster, a, "FAULT {fault:?} (n{b})");
        let before = std::mem::replace(&mut self.last_fault, fault);
        if self.inflict(fault, a, b)? {
            self.figures.count(fault);
        } else {
            self.last_fault = before;
        }
        Ok(())
    }

    fn some_fault(&mut self) -> Fault {
        let all: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut chosen = self.rng.below(all);
        let fault = WEIGHTS.iter().find(|(_, weight)| match chosen.checked_sub(*weight) {
            Some(rest) => {
                chosen = rest;
                false
            }
            None => true,
        });
        fault.map_or(Repair, |(fault, _)| *fault)
    }

    /// Did it happen?
    fn inflict(&mut self, fault: Fault, a: NodeId, b: NodeId) -> Result<bool, String> {
        let runs = self.cluster.host(a).watched();
        let c = &mut self.cluster;
        match fault {
            ControllerKilled => c.kill_controller(a),
            PostmasterKilled => c.kill_postmaster(a),
            PowerLost => c.kill_host(a),
            StateFileLost => return Ok(self.lose_memory(a)),
            Stopped => c.stop(a),
            ClusterPowerLost | ClusterControllersKilled => {
                for id in c.ids() {
                    if fault == ClusterPowerLost { c.kill_host(id) } else { c.kill_controller(id) }
                }
                return Ok(true);
            }
            CutOneWay | CutBothWays | ControlCut | ConnectionReset if a == b => return Ok(false),
            CutOneWay => c.net.cut(a, b),
            CutBothWays => self.cut_both(a, b),
            ControlCut => c.net.cut_control(a, b),
            ConnectionReset => c.reset_connection(a, b),
            Isolated => {
                for other in c.ids() {
                    self.cut_both(a, other);
                }
            }
            Parted => self.part(),
            HostFrozen => c.freeze(a),
            ControllerHangs => c.stall(a),
            DiskFull => c.host_mut(a).disk.full = true,
            PromotedByHand => return Ok(self.promote_by_hand(a)),
            CutOffFollowerStands => return self.follower_stands(),
            VoterForgets => return self.voter_forgets(),
            DeposedLeaderVotes => return self.deposed_leader_votes(),
            OldLeaderReturns => return self.old_leader_returns(),
            QuorumsShift => return self.quorums_shift(),
            MajorityAgain => return self.majority_again(a, b),
            PromotionBreaksOff => return Ok(self.promotion_breaks_off(a)),
            PromotionUnseen => return Ok(self.promotion_goes_unseen(a)),
            Switchover => self.user(a, Command::SetLeader(b)),
            Parameter => self.change_parameter(a, b),
            Member => return Ok(self.change_members(b)),
            Repair => {}
        }
        Ok(runs)
    }

    pub fn some_node(&mut self) -> NodeId {
        let ids = self.cluster.ids();
        self.rng.pick(&ids)
    }

    /// Any node, the leader more often than others.
    fn some_victim(&mut self) -> NodeId {
        let node = self.some_node();
        self.leader().filter(|_| !self.rng.one_in(3)).unwrap_or(node)
    }

    pub fn cut_both(&mut self, a: NodeId, b: NodeId) {
        self.cluster.net.cut(a, b);
        self.cluster.net.cut(b, a);
    }

    /// Two groups that do not hear each other; some links may be left.
    fn part(&mut self) {
        let ids = self.cluster.ids();
        let (left, right): (Vec<NodeId>, Vec<NodeId>) = ids.into_iter().partition(|_| self.rng.one_in(2));
        let leaky = self.rng.one_in(3);
        for a in &left {
            for b in &right {
                if !(leaky && self.rng.one_in(4)) {
                    self.cut_both(*a, *b);
                }
            }
        }
    }

    /// A receiver that still points there would stream from it before its controller says a word.
    fn promote_by_hand(&mut self, id: NodeId) -> bool {
        let c = &mut self.cluster;
        let may = self.hands && c.host(id).watched() && !c.is_source(id);
        let standby = c.host(id).server.mode == ServerMode::Standby;
        if may && standby {
            self.by_hand = true;
            c.promote_by_hand(id);
        }
        may && standby
    }

    /// The number is taken as after a whole promotion.
    fn promotion_breaks_off(&mut self, id: NodeId) -> bool {
        let breaks = self.cluster.host(id).server.mode == ServerMode::Standby;
        if breaks {
            self.by_hand = true;
            self.cluster.promotion_breaks_off(id);
        }
        breaks
    }

    /// As [`Self::promote_by_hand`], but the controller does not live to see it.
    fn promotion_goes_unseen(&mut self, id: NodeId) -> bool {
        let c = &mut self.cluster;
        let may = c.host(id).server.mode == ServerMode::Standby && !c.is_source(id);
        if may {
            self.by_hand = true;
            c.promotion_goes_unseen(id);
        }
        may
    }

    /// Its data are there, its state file is not. One at a time, as long as the others can elect without it.
    pub fn lose_memory(&mut self, id: NodeId) -> bool {
        if !self.can_spare(id) {
            return false;
        }
        self.cluster.kill_host(id);
        self.cluster.host_mut(id).disk.lost = true;
        if !self.mutated {
            self.operator.will_renew(id);
        }
        true
    }

    /// Some of what was done is undone.
    fn repair(&mut self) {
        match self.rng.below(8) {
            0..=2 => self.heal(),
            3..=5 => self.boot_all(),
            6 => self.thaw_all(),
            _ => self.free_disks(),
        }
    }

    pub fn heal(&mut self) {
        self.cluster.net.heal_all();
        let ids = self.cluster.ids();
        for a in &ids {
            for b in ids.iter().filter(|b| *b > a) {
                self.cluster.healed(*a, *b);
            }
        }
    }

    pub fn boot_all(&mut self) {
        for id in self.cluster.ids() {
            let host = self.cluster.host(id);
            let lost = host.disk.lost && !self.mutated;
            if host.stopped && host.server.mode == ServerMode::Down && !lost && !self.operator.keeps_down(id)
            {
                self.cluster.boot(id);
            }
        }
    }

    pub fn thaw_all(&mut self) {
        for id in self.cluster.ids() {
            if self.cluster.host(id).frozen || self.cluster.host(id).stalled {
                self.cluster.thaw(id);
            }
        }
    }

    pub fn free_disks(&mut self) {
        for host in self.cluster.hosts.values_mut() {
            host.disk.full = false;
        }
    }
}
