//! Real PostgreSQL programs, with a stand-in for the extension: everything of bihactl but the controller.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory with an installation of its own, where data directories can be made.
pub struct World {
    pub dir: TempDir,
    bindir: PathBuf,
    user: Option<(u32, u32)>,
}

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().expect("directory");
        let source = source_bindir();
        let bindir = dir.path().join("usr").join(source.strip_prefix("/usr").expect("installed under /usr"));
        let user = is_root().then(|| (id_of("-u"), id_of("-g")));
        let world = World { dir, bindir, user };
        world.install(&source);
        fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).expect("mode");
        if let Some((uid, gid)) = world.user {
            chown(world.path(""), Some(uid), Some(gid)).expect("owner");
        }
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The installation is relocatable: programs are copied, what they read is linked.
    fn install(&self, source: &Path) {
        let config = |option: &str| {
            let output = Command::new(source.join("pg_config")).arg(option).output().expect("pg_config");
            PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
        };
        let here = |path: &Path| self.path("usr").join(path.strip_prefix("/usr").expect("under /usr"));
        copy_all(source, &self.bindir, |from, to| fs::copy(from, to).map(drop).expect("copied"));
        fs::copy(env!("CARGO_BIN_EXE_bihactl"), self.path("bihactl")).expect("copied");
        let link = |from: &Path, to: &Path| symlink(from, to).expect("linked");
        let (library, share) = (config("--pkglibdir"), config("--sharedir"));
        copy_all(&library, &here(&library), link);
        copy_all(&share, &here(&share), link);
        let extensions = here(&share).join("extension");
        fs::remove_file(&extensions).expect("the link");
        copy_all(&share.join("extension"), &extensions, |from, to| {
            if !from.file_name().expect("a name").to_string_lossy().starts_with("biha") {
                link(from, to);
            }
        });
        // Any library that loads will do.
        let stand_in = here(&library).join("biha.so");
        let _ = fs::remove_file(&stand_in);
        symlink(library.join("auth_delay.so"), stand_in).expect("linked");
        let control = "default_version = '0.1'\nrelocatable = false\nschema = 'biha'\n";
        fs::write(extensions.join("biha.control"), control).expect("written");
        let script = [
            include_str!("biha--0.1.sql"),
            include_str!("../../../../sql/views.sql"),
            include_str!("../../../../sql/grants.sql"),
        ];
        fs::write(extensions.join("biha--0.1.sql"), script.concat()).expect("written");
    }

    /// Makes the extension fail to be created.
    pub fn break_extension(&self) {
        let share = self.path("usr");
        let found = Command::new("find").arg(share).args(["-name", "biha--0.1.sql"]).output().expect("find");
        let path = String::from_utf8(found.stdout).expect("a path");
        fs::write(path.trim(), "SELECT broken;").expect("written");
    }

    /// Makes pg_ctl a shell script: `cases` of its arguments, and for others the real one, `$real`.
    pub fn script_pg_ctl(&self, cases: &str) {
        let (program, real) = (self.bindir.join("pg_ctl"), self.bindir.join("pg_ctl.real"));
        if !real.exists() {
            fs::rename(&program, &real).expect("renamed");
        }
        let real = real.display();
        let script = format!(
            "#!/bin/sh\nreal='{real}'\ncd '{}'\ncase \"$*\" in\n{cases}\nesac\nexec \"$real\" \"$@\"\n",
            self.dir.path().display()
        );
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    /// A command run as the user that runs servers.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some((uid, gid)) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--clear-groups"]);
                command.arg(program);
                command
            }
        };
        command.current_dir(self.dir.path()).env_remove("PGHOST").env_remove("PGPORT").env_remove("PGUSER");
        command.env_remove("PGDATA").env("HOME", self.dir.path());
        command
    }

    pub fn bihactl(&self, args: &[&str]) -> Output {
        self.bihactl_in_locale("C.UTF-8", args)
    }

    pub fn bihactl_in_locale(&self, locale: &str, args: &[&str]) -> Output {
        let mut command = self.command(&self.path("bihactl"));
        let output = command.env("LC_ALL", locale).args(args).output().expect("bihactl runs");
        eprintln!("$ bihactl {}\n{}", args.join(" "), text(&output));
        output
    }

    /// Any program; it must succeed.
    pub fn run(&self, program: &str, args: &[&str]) {
        let output = self.command(program.as_ref()).args(args).output().expect("runs");
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
    }

    /// One of PostgreSQL's programs; it must succeed.
    pub fn tool(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(&self.bindir.join(program)).args(args).output().expect("runs");
        assert!(output.status.success(), "{program} {args:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Options that every node of these tests needs.
    pub fn node<'a>(&'a self, pgdata: &'a str, ports: &'a (String, String)) -> Vec<&'a str> {
        let bindir = self.bindir.to_str().expect("a path");
        vec![
            "-D",
            pgdata,
            "--host",
            "127.0.0.1",
            "--port",
            &ports.0,
            "--biha-port",
            &ports.1,
            "--bindir",
            bindir,
            "--listen-addresses",
            "127.0.0.1",
        ]
    }

    pub fn stop(&self, pgdata: &str) {
        self.tool("pg_ctl", &["stop", "-m", "fast", "-w", "-D", pgdata]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Ok(entries) = fs::read_dir(self.dir.path()) else { return };
        for entry in entries.flatten().filter(|entry| entry.path().join("postmaster.pid").exists()) {
            let mut command = self.command(&self.bindir.join("pg_ctl"));
            let _ = command.args(["stop", "-m", "immediate", "-w", "-D"]).arg(entry.path()).output();
        }
    }
}

/// Two free ports.
pub fn ports() -> (String, String) {
    let listeners = [(); 2].map(|()| TcpListener::bind(("0.0.0.0", 0)).expect("bound"));
    let [a, b] = listeners.map(|l| l.local_addr().expect("address").port().to_string());
    (a, b)
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn source_bindir() -> PathBuf {
    match std::env::var_os("BIHA_TEST_BINDIR") {
        Some(bindir) => PathBuf::from(bindir),
        None => PathBuf::from("/usr/lib/postgresql/15/bin"),
    }
}

fn is_root() -> bool {
    id(&["-u"]) == 0
}

fn id_of(option: &str) -> u32 {
    id(&[option, "postgres"])
}

fn id(args: &[&str]) -> u32 {
    let output = Command::new("id").args(args).output().expect("id runs");
    String::from_utf8(output.stdout).expect("text").trim().parse().expect("a number")
}

fn copy_all(from: &Path, to: &Path, copy: impl Fn(&Path, &Path)) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("read") {
        let entry = entry.expect("read");
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}
