//! The one line that postgresql.conf gets. It stays last, because the last setting of a name wins.

use super::{BIHA_CONF_FILE, setting_line};

const MARK: &str = "# biha: keep this line last";
const KEPT: &str = "# kept from biha";

/// Does this line include postgresql.biha.conf?
fn is_ours(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("include") && line.contains(BIHA_CONF_FILE)
}

/// Puts the include of `file` (a path, absolute or relative to postgresql.conf) at the end of postgresql.conf.
pub fn insert_include(text: &str, file: &str) -> String {
    let mut text = remove_include(text);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("include '{}' {MARK}\n", file.replace('\'', "''")));
    text
}

/// Takes the include out again.
pub fn remove_include(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !is_ours(line)).collect()
}

/// Adds settings at the end, marked, for a server that leaves biha and shall keep its port and sizes.
pub fn keep_settings(text: &str, settings: &[(String, String)]) -> String {
    let mut text = text.to_owned();
    if !settings.is_empty() && !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, value) in settings {
        text.push_str(setting_line(name, value).trim_end());
        text.push_str(&format!(" {KEPT}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_in_last_and_once_and_out_without_a_trace() {
        let before = "port = 1\ninclude_dir 'conf.d'\n";
        let once = insert_include(before, "postgresql.biha.conf");
        assert_eq!(once, format!("{before}include 'postgresql.biha.conf' {MARK}\n"));
        assert_eq!(insert_include(&once, "postgresql.biha.conf"), once);
        assert_eq!(remove_include(&once), before);
    }

    #[test]
    fn moves_to_the_end_and_changes_its_path() {
        let text = "include '/a/postgresql.biha.conf'\nport = 1";
        assert_eq!(
            insert_include(text, "/b/postgresql.biha.conf"),
            format!("port = 1\ninclude '/b/postgresql.biha.conf' {MARK}\n")
        );
        assert_eq!(
            insert_include("", "x/postgresql.biha.conf"),
            format!("include 'x/postgresql.biha.conf' {MARK}\n")
        );
    }

    #[test]
    fn a_comment_that_speaks_of_it_stays() {
        let text = "# include 'postgresql.biha.conf' is biha's\n";
        assert_eq!(remove_include(text), text);
    }

    #[test]
    fn kept_settings_can_be_read() {
        let text = keep_settings("a = 1", &[("port".into(), "5433".into())]);
        assert_eq!(text, format!("a = 1\nport = '5433' {KEPT}\n"));
        assert_eq!(keep_settings("a = 1", &[]), "a = 1");
    }
}
