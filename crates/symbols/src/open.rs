//! Opening files that the target names.
//!
//! The path and everything on it belong to the target: it may be a FIFO that
//! blocks its opener, a device with side effects, or a symbolic link that
//! leads out of the target's own file system.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};

/// Symbolic links followed in one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Opens a regular file for reading: below `root` when given (symbolic links
/// cannot lead out of it), else as our own process sees it.
///
/// # Errors
/// When there is none, it may not be read, or it is of another kind.
pub fn regular_file(root: Option<&Path>, path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK the open of a FIFO waits for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = match root {
        None => openat(CWD, path, flags, Mode::empty())?,
        Some(root) => {
            let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = openat(CWD, root, dir, Mode::empty())?;
            match openat2(
                &root,
                path,
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            ) {
                Ok(fd) => fd,
                // Kernels before 5.6, seccomp filters that do not know it, and
                // folders renamed meanwhile.
                Err(
                    rustix::io::Errno::NOSYS | rustix::io::Errno::PERM | rustix::io::Errno::AGAIN,
                ) => below(&root, path, flags)?,
                Err(e) => return Err(e.into()),
            }
        }
    };
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not a regular file", path.display()),
        ));
    }
    Ok(file)
}

/// What `RESOLVE_IN_ROOT` does, component by component: no link is followed
/// by the kernel, `..` stops at the root, absolute links begin there.
fn below(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut rest: VecDeque<OsString> = parts(path.as_os_str());
    let mut dirs: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            dirs.pop();
            continue;
        }
        let here = dirs.last().unwrap_or(root);
        let next = openat(here, part.as_os_str(), step, Mode::empty())?;
        let meta = rustix::fs::fstat(&next)?;
        if rustix::fs::FileType::from_raw_mode(meta.st_mode).is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            let target = readlinkat(&next, "", Vec::new())?.into_bytes();
            if target.first() == Some(&b'/') {
                dirs.clear();
            }
            for part in parts(OsStr::from_bytes(&target)).into_iter().rev() {
                rest.push_front(part);
            }
        } else if rest.is_empty() {
            return Ok(openat(
                here,
                part.as_os_str(),
                flags | OFlags::NOFOLLOW,
                Mode::empty(),
            )?);
        } else {
            dirs.push(next);
        }
    }
    Err(rustix::io::Errno::ISDIR.into())
}

fn parts(path: &OsStr) -> VecDeque<OsString> {
    Path::new(path)
        .components()
        .filter_map(|c| match c {
            Component::Normal(part) => Some(OsString::from_vec(part.as_bytes().to_vec())),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    /// `root/{lib/x, lib/y -> /lib/x, lib/z -> ../../../lib/x,
    /// out -> OUTSIDE/secret, loop -> loop}` and `OUTSIDE/secret`.
    fn tree() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("lib")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("lib/x"), "inside").unwrap();
        symlink("/lib/x", root.join("lib/y")).unwrap();
        symlink("../../../lib/x", root.join("lib/z")).unwrap();
        symlink(dir.path().join("secret"), root.join("out")).unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        (dir, root)
    }

    fn text(file: io::Result<File>) -> Option<String> {
        let mut out = String::new();
        file.ok()?.read_to_string(&mut out).ok()?;
        Some(out)
    }

    #[test]
    fn links_stay_below_the_root() {
        let (_dir, root) = tree();
        for (path, want) in [
            ("/lib/x", Some("inside")),
            ("/lib/y", Some("inside")),
            ("/lib/z", Some("inside")),
            ("/../../lib/../lib/x", Some("inside")),
            ("/out", None),
            ("/up", None),
            ("/loop", None),
            ("/lib", None),
            ("/none", None),
        ] {
            let got = text(regular_file(Some(&root), Path::new(path)));
            assert_eq!(got.as_deref(), want, "{path}");
            let fd = openat(CWD, &root, OFlags::PATH, Mode::empty()).unwrap();
            let by_hand = below(&fd, Path::new(path), OFlags::RDONLY);
            let got =
                by_hand.and_then(|fd| text(Ok(File::from(fd))).ok_or(io::ErrorKind::Other.into()));
            assert_eq!(got.ok().as_deref(), want, "{path} by hand");
        }
    }

    #[test]
    fn a_fifo_neither_blocks_nor_opens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(
            CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(regular_file(None, &path).is_err());
        assert!(regular_file(None, Path::new("/dev/null")).is_err());
    }
}
