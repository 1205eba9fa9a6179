//! libpq's password file.

/// The password of the first line that matches. `*` matches anything; `\` takes the next letter as it is.
pub fn lookup(text: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
    let wanted = [host, &port.to_string(), dbname, user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let (password, keys) = fields.split_last()?;
        let fits = |key: &(String, bool), wanted: &&str| (key.0 == "*" && !key.1) || key.0 == **wanted;
        (keys.len() == 4 && keys.iter().zip(wanted.iter()).all(|(key, wanted)| fits(key, wanted)))
            .then(|| password.0.clone())
    })
}

/// The fields between colons, each with whether anything in it was escaped.
fn fields(line: &str) -> Vec<(String, bool)> {
    let mut fields = vec![(String::new(), false)];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            ':' if last < 4 => fields.push((String::new(), false)),
            '\\' => {
                fields[last].0.extend(chars.next());
                fields[last].1 = true;
            }
            c => fields[last].0.push(c),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_match_wins() {
        let text = "# c\na:5432:biha_db:u:one\n*:*:*:u:two:x\\\\y\n";
        let of = |host, user| lookup(text, host, 5432, "biha_db", user);
        assert_eq!(of("a", "u").as_deref(), Some("one"));
        assert_eq!(of("b", "u").as_deref(), Some("two:x\\y"));
        assert_eq!(of("a", "v"), None);
        assert_eq!(lookup("broken\n", "a", 1, "d", "u"), None);
        assert_eq!(lookup("a\\:b:1:d:u:p", "a:b", 1, "d", "u").as_deref(), Some("p"));
    }
}
