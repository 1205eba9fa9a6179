//! The guard of managed settings.

use pgrx::prelude::*;

/// The tests that run in the server.
#[pg_schema]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// On a server that is no member nothing is refused for biha's sake: the statement comes as far as
    /// PostgreSQL's own rule that it cannot run in a transaction block.
    #[pg_test(error = "ALTER SYSTEM cannot run inside a transaction block")]
    fn alter_system_is_not_guarded_without_a_cluster() {
        Spi::run("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    }
}
