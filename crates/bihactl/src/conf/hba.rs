//! The block that pg_hba.conf gets. It stands first, because the first line that matches decides.

/// Copy of the block in the data directory, for the operator to see.
pub const FILE: &str = "pg_hba.biha.conf";

const BEGIN: &str = "# BEGIN biha";
const END: &str = "# END biha";

/// The block: where the members' own role may connect from, always with its password.
pub fn block() -> String {
    let line = |kind: &str, database: &str, address: &str| {
        format!("{kind:<7} {database:<15} biha_replication_user {address:<7} scram-sha-256\n")
    };
    [
        format!("{BEGIN} (kept by bihactl)\n"),
        line("local", "biha_db", ""),
        line("host", "biha_db", "all"),
        line("host", "replication", "all"),
        format!("{END}\n"),
    ]
    .concat()
}

/// Puts the block first, in place of any that is there.
pub fn insert_hba(text: &str) -> String {
    block() + &remove_hba(text)
}

/// Takes the block out. A block whose end is missing loses only the lines that biha writes.
pub fn remove_hba(text: &str) -> String {
    let ours = |line: &str| {
        line.starts_with(BEGIN)
            || line.starts_with(END)
            || line.split_whitespace().nth(2) == Some("biha_replication_user")
    };
    let mut inside = false;
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        inside |= line.starts_with(BEGIN);
        if !(inside && ours(line)) {
            kept.push_str(line);
        }
        inside &= !line.starts_with(END) && ours(line);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_in_first_and_once_and_out_without_a_trace() {
        let before = "# mine\nlocal all all peer\nhost all biha_replication_user 10.0.0.0/8 md5\n";
        let once = insert_hba(before);
        assert!(once.starts_with(BEGIN) && once.ends_with(before));
        assert_eq!(insert_hba(&once), once);
        assert_eq!(remove_hba(&once), before);
    }

    #[test]
    fn every_line_demands_the_password() {
        for line in block().lines().filter(|line| !line.starts_with('#')) {
            assert_eq!(line.split_whitespace().nth(2), Some("biha_replication_user"), "{line}");
            assert!(line.ends_with("scram-sha-256"), "{line}");
        }
    }

    #[test]
    fn a_block_without_its_end_takes_nothing_else_with_it() {
        let text =
            "# BEGIN biha\nhost replication biha_replication_user all scram-sha-256\nlocal all all peer\n";
        assert_eq!(remove_hba(text), "local all all peer\n");
    }
}
