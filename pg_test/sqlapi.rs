//! The SQL functions on a server that is no member of a cluster: clear errors, no crash.

use pgrx::prelude::*;

/// The tests that run in the server.
#[pg_schema]
mod tests {
    use super::*;

    #[pg_test(error = "biha does not run on this server")]
    fn status_without_a_cluster() {
        Spi::run("SELECT * FROM biha.status_v").unwrap();
    }

    #[pg_test(error = "biha does not run on this server")]
    fn nodes_without_a_cluster() {
        Spi::run("SELECT * FROM biha.nodes_v").unwrap();
    }

    #[pg_test(error = "biha does not run on this server")]
    fn set_leader_without_a_cluster() {
        Spi::run("SELECT biha.set_leader(1)").unwrap();
    }

    #[pg_test(error = "a node's number is at least 1")]
    fn set_leader_to_zero() {
        Spi::run("SELECT biha.set_leader(0)").unwrap();
    }

    #[pg_test(error = "node number must not be negative")]
    fn set_leader_to_a_negative_number() {
        Spi::run("SELECT biha.set_leader(-1)").unwrap();
    }

    #[pg_test(error = "referees are not supported yet")]
    fn add_a_referee() {
        Spi::run("SELECT biha.add_node(4, 'h', 5432, 5433, 'referee')").unwrap();
    }

    #[pg_test(error = "unknown mode \"king\"")]
    fn add_a_node_of_an_unknown_mode() {
        Spi::run("SELECT biha.add_node(4, 'h', 5432, 5433, 'king')").unwrap();
    }

    #[pg_test(error = "port must be between 1 and 65535")]
    fn add_a_node_with_a_port_out_of_range() {
        Spi::run("SELECT biha.add_node(4, 'h', 70000, 5433)").unwrap();
    }

    #[pg_test(error = "node number must not be null")]
    fn set_leader_to_null() {
        Spi::run("SELECT biha.set_leader(NULL)").unwrap();
    }

    #[pg_test(error = "mode must not be null")]
    fn set_lossless_to_null() {
        Spi::run("SELECT biha.set_lossless(NULL)").unwrap();
    }

    #[pg_test]
    fn nobody_but_managers_may_command() {
        Spi::run("CREATE ROLE biha_test_nobody").unwrap();
        let may = |role: &str, function: &str| {
            let sql = format!("SELECT has_function_privilege('{role}', 'biha.{function}', 'EXECUTE')");
            Spi::get_one::<bool>(&sql).unwrap().unwrap()
        };
        for function in ["set_leader(int)", "get_magic_string()", "remove_node(int)", "status()"] {
            assert!(!may("biha_test_nobody", function), "{function}");
            assert!(may("BIHA_CLUSTER_MANAGEMENT_ROLE", function), "{function}");
        }
        assert!(may("biha_monitoring", "status()"));
        assert!(!may("biha_monitoring", "set_leader(int)"));
    }
}
