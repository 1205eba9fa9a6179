//! `biha.state` and `biha.conf` on disk.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use biha_core::image::{self, ImageError, MAX_IMAGE_BODY};
use biha_core::{ClusterConfig, ClusterId, HardState, NodeId};

use crate::durable_write;

/// No file of ours is larger, in bytes.
const MAX_FILE: u64 = MAX_IMAGE_BODY as u64 + 1024;

/// Whose memory a state file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; `None` where only the file itself tells it.
    pub cluster: Option<ClusterId>,
    /// PostgreSQL's system identifier of the data directory.
    pub system_identifier: u64,
    /// The node (`biha.id`).
    pub node: NodeId,
}

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is none.
    #[error("file \"{}\" does not exist", .0.display())]
    Missing(PathBuf),
    /// It is torn or corrupt, or no state file at all.
    #[error("file \"{}\" cannot be used: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: ImageError,
    },
    /// It is the memory of another node: base backups and pg_rewind copy everything.
    #[error("file \"{}\" belongs to {what} {found}, but this is {what} {expected}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs: "cluster", "system identifier" or "node".
        what: &'static str,
        /// As the file says.
        found: String,
        /// As it should be.
        expected: String,
    },
    /// A newer version of biha wrote it.
    #[error("file \"{}\" has format version {found}, this version of biha reads up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format version.
        found: u16,
        /// The newest format version known.
        known: u16,
    },
    /// It cannot be read.
    #[error("could not read file \"{}\": {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// The two state files of a node.
#[derive(Clone, Debug)]
pub struct StateFiles {
    state: PathBuf,
    config: PathBuf,
}

impl StateFiles {
    /// Those in this directory (`pg_biha`). Nothing is read yet.
    pub fn new(directory: &Path) -> StateFiles {
        StateFiles { state: directory.join("biha.state"), config: directory.join("biha.conf") }
    }

    /// Reads `biha.state`, which must be the memory of `identity`.
    pub fn load_state(&self, identity: &Identity) -> Result<HardState, LoadError> {
        let path = &self.state;
        let state = image::decode_state(&read(path)?).map_err(|why| unusable(path, why))?;
        let foreign = |what, found: String, expected: String| LoadError::Foreign {
            path: path.clone(),
            what,
            found,
            expected,
        };
        if let Some(cluster) = identity.cluster
            && cluster != state.cluster
        {
            return Err(foreign("cluster", state.cluster.to_string(), cluster.to_string()));
        }
        if identity.system_identifier != state.system_identifier {
            let expected = identity.system_identifier.to_string();
            return Err(foreign("system identifier", state.system_identifier.to_string(), expected));
        }
        if identity.node != state.node {
            return Err(foreign("node", state.node.to_string(), identity.node.to_string()));
        }
        Ok(state)
    }

    /// Reads `biha.conf`.
    pub fn load_config(&self) -> Result<ClusterConfig, LoadError> {
        image::decode_config(&read(&self.config)?).map_err(|why| unusable(&self.config, why))
    }

    /// Writes `biha.state` durably. After an error it is not known what the file holds: the process must end.
    pub fn write_state(&self, state: &HardState) -> io::Result<()> {
        let content = image::encode_state(state).map_err(io::Error::other)?;
        durable_write(&self.state, &content)
    }

    /// Writes `biha.conf` durably, as [`StateFiles::write_state`] does.
    pub fn write_config(&self, config: &ClusterConfig) -> io::Result<()> {
        let content = image::encode_config(config).map_err(io::Error::other)?;
        durable_write(&self.config, &content)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => LoadError::Missing(path.to_owned()),
        _ => LoadError::Io { path: path.to_owned(), error },
    };
    let mut content = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

fn unusable(path: &Path, why: ImageError) -> LoadError {
    let path = path.to_owned();
    match why {
        ImageError::Newer { found, known } => LoadError::Newer { path, found, known },
        why => LoadError::Damaged { path, why },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use biha_core::Term;

    use super::*;

    fn identity() -> Identity {
        Identity { cluster: Some(ClusterId(7)), system_identifier: 42, node: NodeId(2) }
    }

    fn written() -> (tempfile::TempDir, StateFiles, HardState) {
        let directory = tempfile::tempdir().unwrap();
        let files = StateFiles::new(directory.path());
        let state = HardState { term: Term(3), ..HardState::new(ClusterId(7), 42, NodeId(2)) };
        files.write_state(&state).unwrap();
        (directory, files, state)
    }

    #[test]
    fn what_was_written_is_read() {
        let (directory, files, state) = written();
        assert_eq!(files.load_state(&identity()).unwrap(), state);
        assert_eq!(files.load_state(&Identity { cluster: None, ..identity() }).unwrap(), state);
        files.write_config(&ClusterConfig::default()).unwrap();
        assert_eq!(files.load_config().unwrap(), ClusterConfig::default());
        for name in ["biha.state", "biha.conf"] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left there");
    }

    #[test]
    fn missing_is_told_from_unreadable() {
        let directory = tempfile::tempdir().unwrap();
        let files = StateFiles::new(directory.path());
        assert!(matches!(files.load_state(&identity()), Err(LoadError::Missing(_))));
        assert!(matches!(files.load_config(), Err(LoadError::Missing(_))));
        fs::create_dir(directory.path().join("biha.state")).unwrap();
        assert!(matches!(files.load_state(&identity()), Err(LoadError::Io { .. })));
    }

    #[test]
    fn the_memory_of_another_is_refused() {
        let (_directory, files, _) = written();
        for (wanted, differs) in [
            (Identity { cluster: Some(ClusterId(8)), ..identity() }, "cluster"),
            (Identity { system_identifier: 43, ..identity() }, "system identifier"),
            (Identity { node: NodeId(3), ..identity() }, "node"),
        ] {
            match files.load_state(&wanted) {
                Err(LoadError::Foreign { what, .. }) => assert_eq!(what, differs),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn torn_corrupt_and_newer_are_refused() {
        let (directory, files, _) = written();
        let path = directory.path().join("biha.state");
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(matches!(
            files.load_state(&identity()),
            Err(LoadError::Damaged { why: ImageError::Torn { .. }, .. })
        ));
        fs::write(&path, b"").unwrap();
        assert!(matches!(
            files.load_state(&identity()),
            Err(LoadError::Damaged { why: ImageError::Torn { .. }, .. })
        ));
        let mut bad = good.clone();
        bad[40] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(matches!(
            files.load_state(&identity()),
            Err(LoadError::Damaged { why: ImageError::Checksum, .. })
        ));
        let mut newer = good;
        newer[8..10].copy_from_slice(&2u16.to_le_bytes());
        let end = newer.len() - 4;
        let crc = crc32c::crc32c(&newer[..end]);
        newer[end..].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, &newer).unwrap();
        assert!(matches!(files.load_state(&identity()), Err(LoadError::Newer { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_write_that_fails_is_told() {
        let (directory, files, state) = written();
        fs::create_dir(directory.path().join("biha.state.tmp")).unwrap();
        assert!(files.write_state(&state).is_err());
        assert_eq!(files.load_state(&identity()).unwrap(), state, "the old one is whole");
    }
}
