//! A private directory for the recorder object: the loader wants a path.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

/// Name of the object in its directory; it appears in the target's map.
const OBJECT: &str = "leakscope-preload.so";
/// Attempts at a name that nobody uses yet.
const ATTEMPTS: usize = 16;

/// The directory; removed when dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    keep: bool,
}

impl Place {
    /// Writes the object below the first of `candidates` that can hold it:
    /// writable, not mounted noexec, and without characters that separate
    /// entries of `LD_PRELOAD` (ld.so(8)).
    ///
    /// # Errors
    /// Names the directories and what the last one failed with.
    pub(crate) fn create(candidates: &[PathBuf], object: &[u8]) -> io::Result<Place> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for base in candidates {
            match Place::below(base, object) {
                Ok(place) => return Ok(place),
                Err(error) => last = error,
            }
        }
        let tried: Vec<_> = candidates.iter().map(|c| c.display().to_string()).collect();
        Err(io::Error::new(
            last.kind(),
            format!(
                "no directory for the recorder object among {} ({last}); set TMPDIR to a \
                 writable directory on a file system that allows execution",
                tried.join(", ")
            ),
        ))
    }

    fn below(base: &Path, object: &[u8]) -> io::Result<Place> {
        let name = base.as_os_str().as_bytes();
        let separates = |b: &u8| matches!(b, b':' | b'$' | b';') || b.is_ascii_whitespace();
        if !name.starts_with(b"/") || name.iter().any(separates) {
            return Err(io::Error::other(
                "the path is relative or contains a blank, colon, semicolon or dollar sign",
            ));
        }
        if statvfs(base)?.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Err(io::Error::other("mounted noexec"));
        }
        for _ in 0..ATTEMPTS {
            let dir = base.join(format!("leakscope-{:016x}", random()?));
            // mkdir fails on anything that exists, links included, so nobody
            // can have prepared the directory.
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            let place = Place { dir, keep: false };
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(place.object())?;
            file.write_all(object)?;
            // A child that gave up its privileges must still be able to load
            // it, whatever our umask says.
            file.set_permissions(Permissions::from_mode(0o644))?;
            fs::set_permissions(&place.dir, Permissions::from_mode(0o755))?;
            return Ok(place);
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// Path of the object.
    pub(crate) fn object(&self) -> PathBuf {
        self.dir.join(OBJECT)
    }

    /// Path for a socket beside it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Leaves the directory behind: processes that still run would otherwise
    /// print the loader's complaint when they execute something.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            // Left-over files in a temporary directory are not worth a word.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A number that others cannot guess.
///
/// # Errors
/// When the kernel has none to give.
pub(crate) fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_readable_by_all_and_goes_away() {
        let base = tempfile::tempdir().unwrap();
        let bad = base.path().join("a b");
        fs::create_dir(&bad).unwrap();
        let missing = base.path().join("missing");
        let candidates = [bad, missing, base.path().to_owned()];
        let place = Place::create(&candidates, b"object").unwrap();
        let object = place.object();
        assert_eq!(fs::read(&object).unwrap(), b"object");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&object), 0o644);
        assert_eq!(mode(object.parent().unwrap()), 0o755);
        drop(place);
        assert!(!object.exists());
        let error = Place::create(&candidates[..2], b"").unwrap_err();
        assert!(error.to_string().contains("TMPDIR"), "{error}");
    }
}
