//! Every scenario is one file with one sentence of intent. They are one program, run one after the other
//! (`--test-threads=1`): each has its own cluster, and their timing matters.

mod chaos;
mod common;
mod fenced_server;
mod follower_restart;
mod freeze_of_leader;
mod harness_on_plain_servers;
mod history_survives_failover;
mod hostile_sql;
mod kill9_backend;
mod kill9_postmaster;
mod lossless;
mod lost_transactions;
mod membership_under_load;
mod minnodes_read_only;
mod operators_stop_wins;
mod partition_of_leader;
mod promotion_by_hand;
mod receiver_stop;
mod restart_in_place;
mod rewind_interrupted;
mod settings_from_any_node;
mod sick_leader;
mod silent_loss_of_leader;
mod stands_aside;
mod switchover;
mod switchover_target_dies;
mod synchronous;
mod timeline_gap;
mod unconfigured;
mod wal_removed;
mod whole_cluster_restart;
mod worker_signals;
