//! Everything that is said to a server in SQL.

mod cluster;
mod login;
mod objects;
mod passfile;

pub use cluster::{ClusterView, Node, leader_of, look};
pub use login::{Login, os_user};
pub use objects::{Created, Objects, create_objects, drop_objects, server_settings, unlogged_tables};
pub use passfile::lookup as passfile_lookup;

/// A server's error with its detail and hint, as psql shows it.
pub fn describe(error: &postgres::Error) -> String {
    let Some(db) = error.as_db_error() else { return error.to_string() };
    let mut text = db.message().to_owned();
    for (name, more) in [("DETAIL", db.detail()), ("HINT", db.hint())] {
        if let Some(more) = more {
            text.push_str(&format!("\n{name}:  {more}"));
        }
    }
    text
}

/// Did the server go away, rather than answer the request?
pub fn is_loss(error: &postgres::Error) -> bool {
    match error.as_db_error() {
        Some(db) => db.code().code().starts_with("57P") || db.code().code().starts_with("08"),
        None => true,
    }
}
