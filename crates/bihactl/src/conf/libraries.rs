//! `shared_preload_libraries`: biha stands first, so that its callbacks run last.

/// The list with biha put first and every other library kept in its order.
pub fn with_biha_first(list: &str) -> String {
    let others = without_biha(list);
    if others.is_empty() { "biha".to_owned() } else { format!("biha, {others}") }
}

/// The list without biha.
pub fn without_biha(list: &str) -> String {
    let others: Vec<&str> = split(list).into_iter().filter(|item| item.trim_matches('"') != "biha").collect();
    others.join(", ")
}

/// The items, double quotes kept, since a name may hold a comma.
fn split(list: &str) -> Vec<&str> {
    let mut quoted = false;
    list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .map(str::trim)
    .filter(|item| !item.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biha_comes_first_once() {
        assert_eq!(with_biha_first(""), "biha");
        assert_eq!(
            with_biha_first("auto_explain,pg_stat_statements"),
            "biha, auto_explain, pg_stat_statements"
        );
        assert_eq!(with_biha_first("a, \"biha\", \"b,c\""), "biha, a, \"b,c\"");
        assert_eq!(with_biha_first("biha"), "biha");
        assert_eq!(without_biha("biha, a"), "a");
    }
}
