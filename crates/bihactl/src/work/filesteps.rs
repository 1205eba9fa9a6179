//! Steps that write files.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use biha_core::{HardState, Incarnation, NodeId, image};

use super::Work;
use crate::certs;
use crate::conf::{
    BIHA_CONF_FILE, HBA_COPY_FILE, MANAGED, clean_auto_conf, hba_block, insert_hba, insert_include,
    setting_line,
};
use crate::datadir::{self, UNFINISHED};
use crate::files;
use crate::outcome::refused;
use crate::tools::{Show, run};
use crate::ui;

const SECRET: u32 = 0o600;

impl Work {
    pub(super) fn clear_unfinished(&mut self) -> Result<()> {
        if datadir::running(&self.layout.pgdata)?.is_some() {
            super::stop(&self.tools, &self.layout.pgdata, "immediate")?;
        }
        wipe(&self.layout.pgdata, false)
    }

    pub(super) fn initdb(&mut self, args: &[String]) -> Result<()> {
        self.will_fill_directory();
        run(self.tools.command_in_locale("initdb").args(args), Show::Failure)?;
        mark_unfinished(&self.layout.pgdata)
    }

    /// Whatever comes into the data directory from now on is ours to remove.
    pub(super) fn will_fill_directory(&mut self) {
        let pgdata = self.layout.pgdata.clone();
        let missing = !pgdata.exists();
        self.undo.push(format!("empty \"{}\"", pgdata.display()), move || wipe(&pgdata, missing));
    }

    /// What is started as a node is one from then on: a mark that outlived its start would have it emptied one day. If the
    /// start fails the mark is put back, for the case that the emptying is cut short.
    pub(super) fn unmark(&mut self) -> Result<()> {
        if remove_mark(&self.layout.pgdata)? {
            let pgdata = self.layout.pgdata.clone();
            let what = format!("mark \"{}\" as unfinished", pgdata.display());
            self.undo.push(what, move || mark_unfinished(&pgdata));
        }
        Ok(())
    }

    pub(super) fn remove_copied(&mut self) -> Result<()> {
        let pgdata = self.layout.pgdata.clone();
        forget_source(&pgdata)?;
        for name in [BIHA_CONF_FILE, HBA_COPY_FILE, "postmaster.opts"] {
            if pgdata.join(name).exists() {
                fs::remove_file(pgdata.join(name))?;
            }
        }
        if !self.layout.config_file.exists() {
            self.make_config_files()?;
        }
        // The copied postgresql.conf includes the file that was just removed.
        files::replace(&pgdata.join(BIHA_CONF_FILE), self.conf.text().as_bytes(), SECRET)?;
        if let Some(logs) = own_directory(&pgdata, &self.setting("log_directory")?) {
            files::empty(&logs, false)?;
        }
        Ok(())
    }

    /// The leader keeps its configuration outside of its data directory: this node gets its own, inside.
    fn make_config_files(&self) -> Result<()> {
        ui::warn(
            "the leader's postgresql.conf is not in its data directory, so it was not copied",
            "This node gets one with biha's settings only; add what else it needs before it starts.",
        );
        files::replace(&self.layout.config_file, b"", SECRET)?;
        let hba = self.file("pg_hba.conf");
        if !hba.exists() {
            files::replace(&hba, b"local   all   all   peer\n", SECRET)?;
        }
        let ident = self.file("pg_ident.conf");
        if !ident.exists() {
            files::replace(&ident, b"", SECRET)?;
        }
        Ok(())
    }

    pub(super) fn write_identity(&mut self) -> Result<()> {
        let directory = self.file("pg_biha");
        if !directory.exists() {
            make_private_directory(&directory)?;
            let path = directory.clone();
            self.undo.push(format!("remove \"{}\"", path.display()), move || files::empty(&path, true));
        }
        let node = NodeId(self.node.id);
        let secrets = self.secrets.clone();
        let control = datadir::control(&self.tools, &self.layout.pgdata)?;
        let mut state = HardState::new(secrets.cluster, control.system_identifier, node);
        state.incarnation = first_incarnation();
        let certificate = certs::node(&secrets.authority, secrets.cluster, node)?;
        let pgpass = format!("*:*:*:biha_replication_user:{}\n", secrets.password);
        let config = self.config_image()?;
        for (name, content) in [
            ("ca.crt", secrets.authority.certificate.as_bytes()),
            ("ca.key", secrets.authority.key.as_bytes()),
            ("node.crt", certificate.certificate.as_bytes()),
            ("node.key", certificate.key.as_bytes()),
            ("pgpass", pgpass.as_bytes()),
            ("biha.state", &image::encode_state(&state)?),
            // Last: it is what makes the directory a node's.
            ("biha.conf", &config),
        ] {
            files::edit(&directory.join(name), content, SECRET, &mut self.undo)?;
        }
        Ok(())
    }

    fn config_image(&mut self) -> Result<Vec<u8>> {
        match &self.config {
            Some(config) => Ok(image::encode_config(config)?),
            None => self.fetch_config(),
        }
    }

    pub(super) fn write_biha_conf(&mut self) -> Result<()> {
        files::edit(&self.file(BIHA_CONF_FILE), self.conf.text().as_bytes(), SECRET, &mut self.undo)
    }

    pub(super) fn clean_auto_conf(&mut self) -> Result<()> {
        let path = self.file("postgresql.auto.conf");
        let Some(text) = files::read_text(&path)? else { return Ok(()) };
        let mut names = self.conf.names();
        names.extend(MANAGED);
        let (kept, removed) = clean_auto_conf(&text, &names);
        if removed.is_empty() {
            return Ok(());
        }
        if self.keep_copies {
            let copy = files::free_name(&self.file("postgresql.auto.conf.before-biha"));
            files::edit(&copy, text.as_bytes(), SECRET, &mut self.undo)?;
            ui::say(&format!(
                "taken out: {}; the file as it was is \"{}\"",
                removed.join(", "),
                copy.display()
            ));
        }
        files::edit(&path, kept.as_bytes(), SECRET, &mut self.undo)
    }

    pub(super) fn insert_hba(&mut self) -> Result<()> {
        let path = self.hba_file()?;
        let text = files::read_text(&path)?.unwrap_or_default();
        files::edit(&path, insert_hba(&text).as_bytes(), SECRET, &mut self.undo)?;
        files::edit(&self.file(HBA_COPY_FILE), hba_block().as_bytes(), SECRET, &mut self.undo)
    }

    fn hba_file(&mut self) -> Result<PathBuf> {
        if self.hba_file.is_none() {
            self.hba_file = Some(PathBuf::from(self.setting("hba_file")?));
        }
        self.hba_file.clone().context("pg_hba.conf is not known")
    }

    pub(super) fn insert_include(&mut self) -> Result<()> {
        let path = self.layout.config_file.clone();
        let text =
            files::read_text(&path)?.with_context(|| format!("\"{}\" does not exist", path.display()))?;
        let text = insert_include(&text, &self.layout.include_path(BIHA_CONF_FILE));
        files::edit(&path, text.as_bytes(), SECRET, &mut self.undo)
    }

    pub(super) fn standby_signal(&mut self) -> Result<()> {
        files::edit(&self.file("standby.signal"), b"", SECRET, &mut self.undo)
    }

    /// What the server would read must be what was meant: a file included elsewhere may say otherwise.
    pub(super) fn check_config(&mut self) -> Result<()> {
        let pgdata = fs::canonicalize(&self.layout.pgdata)?;
        let hba = self.hba_file()?;
        let is_path = |text: &str, path: &Path| {
            fs::canonicalize(self.layout.pgdata.join(text)).ok() == fs::canonicalize(path).ok()
        };
        if !is_path(&self.setting("data_directory")?, &pgdata) || !is_path(&self.setting("hba_file")?, &hba) {
            let file = self.layout.config_file.display();
            return Err(refused(format!(
                "\"{file}\" names a data_directory or hba_file that is not this server's\nHINT:  Take it out of \
                 the configuration that was copied from the leader, or give this node its own with --config-file."
            )));
        }
        for name in ["port", "shared_preload_libraries", "biha.id", "biha.port"] {
            let (found, wanted) = (self.setting(name)?, self.conf.get(name).unwrap_or_default());
            if found != wanted {
                let line = setting_line(name, &found);
                bail!("the configuration files end up with {} but it must be '{wanted}'", line.trim_end());
            }
        }
        Ok(())
    }

    pub(super) fn keep(&mut self) -> Result<()> {
        remove_mark(&self.layout.pgdata)?;
        self.undo.keep();
        Ok(())
    }
}

fn mark_unfinished(pgdata: &Path) -> Result<()> {
    make_private_directory(&pgdata.join("pg_biha"))?;
    files::replace(&pgdata.join(UNFINISHED), b"", SECRET)
}

/// What is biha's in a copy is another node's. The mark comes first: at no moment is the directory taken for a server of
/// somebody's own.
fn forget_source(pgdata: &Path) -> Result<()> {
    mark_unfinished(pgdata)?;
    files::empty_but(
        &pgdata.join("pg_biha"),
        Path::new(UNFINISHED).file_name().and_then(|name| name.to_str()),
    )
}

/// Was it there?
fn remove_mark(pgdata: &Path) -> Result<bool> {
    let mark = pgdata.join(UNFINISHED);
    if !mark.exists() {
        return Ok(false);
    }
    fs::remove_file(&mark)?;
    files::sync_directory(&pgdata.join("pg_biha"))?;
    Ok(true)
}

fn make_private_directory(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    Ok(files::sync_directory(path.parent().unwrap_or(Path::new("/")))?)
}

/// A directory that a setting names, if it is there and inside the data directory: ".." and links may lead to another
/// server's.
fn own_directory(pgdata: &Path, name: &str) -> Option<PathBuf> {
    let directory = fs::canonicalize(pgdata.join(name)).ok()?;
    let pgdata = fs::canonicalize(pgdata).ok()?;
    (directory != pgdata && directory.starts_with(&pgdata)).then_some(directory)
}

/// Empties a data directory that this or an unfinished bihactl filled, with the tablespaces and the WAL
/// directory that it links to.
fn wipe(pgdata: &Path, itself: bool) -> Result<()> {
    if datadir::running(pgdata)?.is_some() {
        bail!(
            "its server still runs\nHINT:  When it has ended, repeat the command: it empties the directory first."
        );
    }
    let mut links = vec![pgdata.join("pg_wal")];
    if let Ok(entries) = fs::read_dir(pgdata.join("pg_tblspc")) {
        links.extend(entries.flatten().map(|entry| entry.path()));
    }
    for link in links.iter().filter(|link| link.is_symlink()) {
        files::empty(&fs::canonicalize(link)?, false)?;
    }
    // The mark goes last: a later run finishes what is cut short.
    files::empty_but(pgdata, Some("pg_biha"))?;
    files::empty(pgdata, itself)
}

/// Above every incarnation of a former node of this number, which others may remember.
fn first_incarnation() -> Incarnation {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Incarnation::first(since.map_or(0, |time| time.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::datadir::Content;

    #[test]
    fn wiping_reaches_tablespaces() {
        let dir = tempfile::tempdir().expect("directory");
        let (pgdata, space) = (dir.path().join("d"), dir.path().join("t"));
        fs::create_dir_all(pgdata.join("pg_tblspc")).expect("made");
        fs::create_dir_all(space.join("PG_15")).expect("made");
        symlink(&space, pgdata.join("pg_tblspc/1")).expect("link");
        wipe(&pgdata, true).expect("wiped");
        assert!(!pgdata.exists());
        assert_eq!(fs::read_dir(&space).expect("kept").count(), 0);
    }

    #[test]
    fn of_the_source_the_copy_keeps_nothing_but_is_marked() {
        let dir = tempfile::tempdir().expect("directory");
        let own = dir.path().join("pg_biha");
        fs::create_dir_all(own.join("lost")).expect("made");
        fs::write(own.join("biha.conf"), "the leader's").expect("written");
        forget_source(dir.path()).expect("forgotten");
        assert!(dir.path().join(UNFINISHED).exists());
        assert_eq!(fs::read_dir(&own).expect("there").count(), 1);
    }

    #[test]
    fn what_is_left_of_a_wipe_is_known_as_unfinished() {
        let dir = tempfile::tempdir().expect("directory");
        let pgdata = dir.path().join("d");
        fs::create_dir_all(pgdata.join("base/1")).expect("made");
        mark_unfinished(&pgdata).expect("marked");
        let marked = || datadir::DataDir::probe(&pgdata).expect("probe").content == Content::Unfinished;

        fs::write(pgdata.join("postmaster.pid"), format!("{}\n", std::process::id())).expect("written");
        assert!(wipe(&pgdata, true).is_err() && marked() && pgdata.join("base/1").exists(), "it runs");
        fs::remove_file(pgdata.join("postmaster.pid")).expect("removed");

        files::empty_but(&pgdata, Some("pg_biha")).expect("emptied");
        assert!(marked() && !pgdata.join("base").exists(), "all else goes before");
        wipe(&pgdata, true).expect("wiped");
        assert!(!pgdata.exists());
    }

    #[test]
    fn what_leads_out_of_the_data_directory_is_not_its_own() {
        let dir = tempfile::tempdir().expect("directory");
        let base = fs::canonicalize(dir.path()).expect("there");
        let pgdata = base.join("d");
        for name in ["d/log", "d2", "pg_log"] {
            fs::create_dir_all(base.join(name)).expect("made");
        }
        symlink(base.join("pg_log"), pgdata.join("out")).expect("link");
        symlink(&pgdata, base.join("link")).expect("link");
        let own = |name: &str| own_directory(&pgdata, name);
        assert_eq!(own("log"), Some(pgdata.join("log")));
        assert_eq!(own("../d/log"), Some(pgdata.join("log")));
        assert_eq!(own_directory(&base.join("link"), "log"), Some(pgdata.join("log")));
        let other = base.join("pg_log").display().to_string();
        for name in ["../pg_log", "log/../../pg_log", &other, "out", "../d2", ".", "log/..", "missing"] {
            assert_eq!(own(name), None, "{name}");
        }
    }
}
