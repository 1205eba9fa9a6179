//! Running programs: as user postgres where the harness runs as root, in a node's network namespace where it
//! has one.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The user that servers run as when the harness runs as root.
const SERVER_USER: &str = "postgres";

/// Does the harness run as root?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// How a node's programs are started.
#[derive(Clone, Debug, Default)]
pub struct Runner {
    /// Network namespace to run in, or the harness's own.
    pub namespace: Option<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
}

impl Runner {
    /// A command that will run as the servers' user, in the node's namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["nsenter".into(), format!("--net=/run/netns/{namespace}"), "--".into()]);
        }
        if is_root() {
            let user = SERVER_USER;
            words.extend(["setpriv".into(), format!("--reuid={user}"), format!("--regid={user}")]);
            words.extend(["--init-groups".into(), "--".into()]);
        }
        let mut command = match words.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program.as_ref());
                command
            }
            None => Command::new(program),
        };
        for name in ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA", "PGOPTIONS", "PGSERVICE"] {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C.UTF-8").envs(self.environment.iter().cloned());
        command.current_dir("/").stdin(Stdio::null());
        command
    }
}

/// Runs a command to its end; its output is the error where it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let text = both_streams(&output);
    let words = || [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy);
    ensure!(
        output.status.success(),
        "{} failed ({}):\n{text}",
        words().collect::<Vec<_>>().join(" "),
        output.status
    );
    Ok(text)
}

/// Runs a command to its end and gives its output, also where it fails.
pub fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("could not run {command:?}"))
}

/// What a command wrote, standard output first.
pub fn both_streams(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Makes a directory that the servers' user owns.
pub fn make_directory(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    give_to_server_user(dir)
}

/// Gives a file or directory to the servers' user.
pub fn give_to_server_user(path: &Path) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let id = |flag: &str| -> Result<u32> {
        Ok(run(Command::new("id").args([flag, SERVER_USER]))?.trim().parse()?)
    };
    chown(path, Some(id("-u")?), Some(id("-g")?))
        .with_context(|| format!("could not give {} to {SERVER_USER}", path.display()))
}

/// Where PostgreSQL's programs are: $BIHA_PG_BINDIR, else what pg_config says.
pub fn pg_bindir() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("BIHA_PG_BINDIR") {
        return Ok(dir.into());
    }
    Ok(run(Command::new("pg_config").arg("--bindir"))?.trim().into())
}

/// Where bihactl is: $BIHACTL, else beside this program, else on the path.
pub fn find_bihactl() -> Result<PathBuf> {
    if let Some(path) = env::var_os("BIHACTL") {
        return Ok(path.into());
    }
    let own = env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("bihactl"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join("bihactl"));
    for candidate in beside.chain(on_path) {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("bihactl was not found: build it (make build) or set BIHACTL")
}

/// Copies a program to where the servers' user can run it: a checkout may lie below a directory that this
/// user can't enter.
pub fn copy_program(program: &Path, dir: &Path) -> Result<PathBuf> {
    make_directory(dir)?;
    let name = program.file_name().context("a program without a name")?;
    let copy = dir.join(name);
    fs::copy(program, &copy).with_context(|| format!("could not copy {}", program.display()))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

/// The directory below which everything is made: $BIHA_TEST_DIR, else the system's for temporary files.
pub fn base_directory() -> PathBuf {
    env::var_os("BIHA_TEST_DIR").map_or_else(env::temp_dir, PathBuf::from)
}
