//! The postmaster's command line, made independent of the directory it was started in: by the time it is
//! used again, that is the data directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Options of `postgres` that take a value (PostmasterMain; the same in 15 to 18).
const WITH_VALUE: &[u8] = b"BCDNSWcdfhkprt-";

/// Absolute paths of what a command line may name relatively.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The server's executable.
    pub executable: PathBuf,
    /// The data directory.
    pub data_directory: PathBuf,
    /// `config_file`.
    pub config_file: PathBuf,
    /// `hba_file`.
    pub hba_file: PathBuf,
    /// `ident_file`.
    pub ident_file: PathBuf,
}

impl Paths {
    /// What `-D` or `PGDATA` must have meant: the directory of postgresql.conf, or, where the command line
    /// names that file itself, the data directory.
    fn configuration_directory(&self, names_config_file: bool) -> &Path {
        match self.config_file.parent() {
            Some(directory) if !names_config_file => directory,
            _ => &self.data_directory,
        }
    }

    /// The absolute path that a setting given on the command line was resolved to.
    fn of_setting(&self, name: &str) -> Option<&Path> {
        match name.replace('-', "_").to_ascii_lowercase().as_str() {
            "config_file" => Some(&self.config_file),
            "data_directory" => Some(&self.data_directory),
            "hba_file" => Some(&self.hba_file),
            "ident_file" => Some(&self.ident_file),
            _ => None,
        }
    }
}

/// One option letter with its value, as getopt(3) would find it.
enum Piece {
    /// Everything up to and including the letter, and the value, in one argument.
    Joined(u8, Vec<u8>, Vec<u8>),
    /// The value is the next argument.
    Separate(u8),
    /// Anything else.
    Plain,
}

fn piece(argument: &[u8]) -> Piece {
    if argument.len() < 2 || argument[0] != b'-' {
        return Piece::Plain;
    }
    for (index, letter) in argument.iter().enumerate().skip(1) {
        if WITH_VALUE.contains(letter) {
            let (option, value) = argument.split_at(index + 1);
            return if value.is_empty() {
                Piece::Separate(*letter)
            } else {
                Piece::Joined(*letter, option.to_vec(), value.to_vec())
            };
        }
    }
    Piece::Plain
}

fn setting_name(value: &[u8]) -> Option<(&str, &[u8])> {
    let equals = value.iter().position(|byte| *byte == b'=')?;
    Some((std::str::from_utf8(&value[..equals]).ok()?, &value[equals + 1..]))
}

/// An option's value with its relative path made absolute.
fn absolute(letter: u8, value: &[u8], paths: &Paths, names_config_file: bool) -> Vec<u8> {
    let relative = |path: &[u8]| !path.starts_with(b"/");
    match letter {
        b'D' if relative(value) => {
            paths.configuration_directory(names_config_file).as_os_str().as_bytes().to_vec()
        }
        b'c' | b'-' => match setting_name(value) {
            Some((name, path)) if relative(path) => match paths.of_setting(name) {
                Some(path) => [name.as_bytes(), b"=", path.as_os_str().as_bytes()].concat(),
                None => value.to_vec(),
            },
            _ => value.to_vec(),
        },
        _ => value.to_vec(),
    }
}

/// Does the command line say where postgresql.conf is?
fn names_config_file(arguments: &[Vec<u8>]) -> bool {
    let mut separate = false;
    arguments.iter().any(|argument| {
        let value = match (separate, piece(argument)) {
            (true, _) => Some(argument.clone()),
            (false, Piece::Joined(b'c' | b'-', _, value)) => Some(value),
            _ => None,
        };
        separate = !separate && matches!(piece(argument), Piece::Separate(b'c' | b'-'));
        value
            .as_deref()
            .and_then(setting_name)
            .is_some_and(|(name, _)| name.replace('-', "_").eq_ignore_ascii_case("config_file"))
    })
}

/// The arguments with which the server starts again as it was started, from any directory. `cmdline` is the
/// content of `/proc/self/cmdline`.
pub fn absolute_arguments(cmdline: &[u8], paths: &Paths) -> Vec<OsString> {
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let arguments: Vec<Vec<u8>> = cmdline.split(|byte| *byte == 0).skip(1).map(<[u8]>::to_vec).collect();
    let named = names_config_file(&arguments);
    let mut result = vec![paths.executable.clone().into_os_string()];
    let mut waiting = None;
    for argument in &arguments {
        let fixed = match (waiting.take(), piece(argument)) {
            (Some(letter), _) => absolute(letter, argument, paths, named),
            (None, Piece::Joined(letter, option, value)) => {
                [option, absolute(letter, &value, paths, named)].concat()
            }
            (None, Piece::Separate(letter)) => {
                waiting = Some(letter);
                argument.clone()
            }
            (None, Piece::Plain) => argument.clone(),
        };
        result.push(OsString::from_vec(fixed));
    }
    result
}

/// What `PGDATA` must be for the new image, if the present value is relative.
pub fn absolute_pgdata(pgdata: Option<&OsStr>, cmdline: &[u8], paths: &Paths) -> Option<PathBuf> {
    let relative = pgdata.is_some_and(|value| !value.is_empty() && Path::new(value).is_relative());
    let arguments: Vec<Vec<u8>> = cmdline.split(|byte| *byte == 0).skip(1).map(<[u8]>::to_vec).collect();
    relative.then(|| paths.configuration_directory(names_config_file(&arguments)).to_path_buf())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn paths() -> Paths {
        Paths {
            executable: "/usr/lib/postgresql/15/bin/postgres".into(),
            data_directory: "/srv/data".into(),
            config_file: "/etc/pg/postgresql.conf".into(),
            hba_file: "/etc/pg/pg_hba.conf".into(),
            ident_file: "/etc/pg/pg_ident.conf".into(),
        }
    }

    fn fixed(arguments: &[&str]) -> Vec<String> {
        let cmdline = arguments.join("\0") + "\0";
        absolute_arguments(cmdline.as_bytes(), &paths())
            .into_iter()
            .skip(1)
            .map(|argument| argument.into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_executable_is_absolute() {
        let all = absolute_arguments(b"./postgres\0-D\0x\0", &paths());
        assert_eq!(all[0], "/usr/lib/postgresql/15/bin/postgres");
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn a_relative_data_directory_is_where_the_configuration_is() {
        assert_eq!(fixed(&["p", "-D", "n"]), ["-D", "/etc/pg"]);
        assert_eq!(fixed(&["p", "-Dn", "-p", "1"]), ["-D/etc/pg", "-p", "1"]);
        assert_eq!(fixed(&["p", "-iDn"]), ["-iD/etc/pg"]);
    }

    #[test]
    fn with_config_file_named_it_is_the_data_directory() {
        assert_eq!(
            fixed(&["p", "-D", "n", "-c", "config_file=etc/x.conf"]),
            ["-D", "/srv/data", "-c", "config_file=/etc/pg/postgresql.conf"]
        );
        assert_eq!(
            fixed(&["p", "--config-file=x", "-Dn"]),
            ["--config-file=/etc/pg/postgresql.conf", "-D/srv/data"]
        );
    }

    #[test]
    fn absolute_and_other_values_stay() {
        let same = ["-D", "/a", "-c", "work_mem=5MB", "--hba_file=/x", "-cport=1", "-N", "-D", "-F", ""];
        let mut command = vec!["p"];
        command.extend(same);
        assert_eq!(fixed(&command), same);
    }

    #[test]
    fn a_value_that_looks_like_an_option_is_a_value() {
        assert_eq!(fixed(&["p", "-k", "-Dn", "-D", "n"]), ["-k", "-Dn", "-D", "/etc/pg"]);
    }

    #[test]
    fn relative_pgdata_is_replaced() {
        assert_eq!(absolute_pgdata(Some("n".as_ref()), b"p\0", &paths()), Some("/etc/pg".into()));
        assert_eq!(absolute_pgdata(Some("/n".as_ref()), b"p\0", &paths()), None);
        assert_eq!(absolute_pgdata(None, b"p\0", &paths()), None);
    }

    #[test]
    fn doing_it_twice_changes_nothing() {
        let once = fixed(&["p", "-D", "n", "-c", "hba_file=h"]);
        let again: Vec<&str> = std::iter::once("p").chain(once.iter().map(String::as_str)).collect();
        assert_eq!(fixed(&again), once);
    }
}
