//! The life of a server that is no member of a cluster, and the door through which the cluster tests ask a
//! member for a restart in place.

use pgrx::prelude::*;

use crate::lifecycle;

/// Functions for tests only, and the tests that run in the server.
#[pg_schema]
mod tests {
    use super::*;

    /// Asks the postmaster for a restart in place, rewound against `source` if it is given.
    #[pg_extern]
    fn restart_in_place(source: default!(Option<&str>, "NULL")) -> bool {
        match lifecycle::request_restart(source.map(|source| lifecycle::Repair::Rewind(source.into()))) {
            Ok(()) => true,
            Err(error) => error!("{error}"),
        }
    }

    /// What came of the rewind before this start.
    #[pg_extern]
    fn rewind_result() -> Option<String> {
        let said = lifecycle::rewind_result().map(|result| match result {
            Ok(_) => "ok".into(),
            Err(why) => why.text,
        });
        lifecycle::forget_rewind_result().map(|()| said).unwrap_or_else(|error| error!("{error}"))
    }

    #[pg_test]
    fn a_server_that_is_no_member_is_left_alone() {
        assert_eq!(Spi::get_one::<bool>("SELECT pg_is_in_recovery()"), Ok(Some(false)));
        assert!(!std::path::Path::new("standby.signal").exists());
        assert!(!std::path::Path::new("pg_biha").exists());
    }

    #[pg_test]
    fn a_server_that_is_no_member_is_not_restarted() {
        assert_eq!(lifecycle::request_restart(None), Err("biha does not lead this server".into()));
    }
}
