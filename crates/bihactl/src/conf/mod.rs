//! Edits of PostgreSQL's configuration files, as functions from text to text. All are idempotent, and what
//! is put in can be taken out again without a trace. Nothing here touches a file.

mod auto;
mod biha;
mod hba;
mod include;
mod libraries;

pub use auto::clean_auto_conf;
pub use biha::{BihaConf, FILE as BIHA_CONF_FILE};
pub use hba::{FILE as HBA_COPY_FILE, block as hba_block, insert_hba, remove_hba};
pub use include::{insert_include, keep_settings, remove_include};
pub use libraries::{with_biha_first, without_biha};

/// Settings that biha alone writes, at run time: no other file may set them.
pub const MANAGED: [&str; 3] = ["primary_conninfo", "primary_slot_name", "synchronous_standby_names"];

/// The setting that a line of postgresql.conf makes: its name in lower case, and its value without quotes.
/// `None` for comments, blank lines and include directives.
pub fn setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "_.$".contains(c))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || matches!(name, "include" | "include_if_exists" | "include_dir") {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Some((name.to_ascii_lowercase(), value(rest)))
}

/// The value at the start of `text`: quoted as PostgreSQL reads it (guc-file.l), or up to blank or comment.
fn value(text: &str) -> String {
    let Some(quoted) = text.strip_prefix('\'') else {
        return text.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or("").to_owned();
    };
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    value
}

/// A line of postgresql.conf that makes a setting.
pub fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines_as_postgresql_does() {
        let of = |line| setting(line).map(|(n, v)| format!("{n}={v}"));
        assert_eq!(of("port = 5432 # here"), Some("port=5432".into()));
        assert_eq!(of("  Port=5432"), Some("port=5432".into()));
        assert_eq!(of("work_mem 4MB#x"), Some("work_mem=4MB".into()));
        assert_eq!(of("a.b = 'it''s \\'so\\'' # c"), Some("a.b=it's 'so'".into()));
        assert_eq!(of("# port = 1"), None);
        assert_eq!(of("include 'x'"), None);
        assert_eq!(of("include_if_exists = 'x'"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn written_lines_read_back() {
        for value in ["", "a b", "it's", "back\\slash", "#"] {
            assert_eq!(setting(&setting_line("x", value)), Some(("x".into(), value.into())));
        }
    }
}
