//! postgresql.auto.conf: it beats every other file, so what biha sets must not stand in it.

use super::setting;

/// Takes the settings of these names out. Returns the new text and the names that were found, in order.
pub fn clean_auto_conf(text: &str, names: &[&str]) -> (String, Vec<String>) {
    let mut kept = String::new();
    let mut removed = Vec::new();
    for line in text.split_inclusive('\n') {
        match setting(line) {
            Some((name, _)) if names.contains(&name.as_str()) => {
                if !removed.contains(&name) {
                    removed.push(name);
                }
            }
            _ => kept.push_str(line),
        }
    }
    (kept, removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_out_only_what_is_named() {
        let text = "# Do not edit\nprimary_conninfo = 'host=a'\nwork_mem = '4MB'\nPORT = '1'\nport = 2\n";
        let (kept, removed) = clean_auto_conf(text, &["primary_conninfo", "port"]);
        assert_eq!(kept, "# Do not edit\nwork_mem = '4MB'\n");
        assert_eq!(removed, ["primary_conninfo", "port"]);
        assert_eq!(clean_auto_conf(&kept, &["primary_conninfo", "port"]), (kept.clone(), vec![]));
    }
}
