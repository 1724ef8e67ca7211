//! A file's contents, mapped where that is safe and copied where it is not.
//!
//! Reading a page of a mapping that lies behind the file's present end kills
//! the reader with SIGBUS, and the owner of a file may cut it at any moment:
//! by malice, or by rebuilding the program. So files that nobody but root can
//! write are mapped; of all others the asked ranges are copied. (One
//! exception: files too large to copy that belong to ourselves, who would
//! only kill our own report.)

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use memmap2::Mmap;

/// An opened regular file.
pub(crate) struct Contents {
    inner: Inner,
    len: u64,
}

enum Inner {
    Mapped(Mmap),
    File(File),
    Owned(Vec<u8>),
}

/// Permission to write for the group or others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Files of our own that are larger are mapped, bytes.
const LARGE: u64 = 1 << 30;
/// Largest single copy, bytes: more than any section of a real debug file.
const MAX_COPY: u64 = 4 << 30;

impl Contents {
    /// The contents of `file`, which must be regular.
    pub(crate) fn new(file: File) -> io::Result<Contents> {
        let meta = file.metadata()?;
        let len = meta.len();
        let owner_alone = meta.mode() & WRITABLE_BY_OTHERS == 0;
        let root_owns = meta.uid() == 0;
        let we_own = meta.uid() == rustix::process::geteuid().as_raw();
        if len > 0 && owner_alone && (root_owns || we_own && len > LARGE) {
            // SAFETY: the mapping is private and read-only, and the file can be
            // changed or cut by root or by our own user only (checked above on
            // the open descriptor), who could change this process at will
            // anyway. Its bytes are read as plain `u8`, for which every value
            // is valid.
            #[allow(unsafe_code)]
            if let Ok(map) = unsafe { Mmap::map(&file) } {
                return Ok(Contents {
                    len: map.len() as u64,
                    inner: Inner::Mapped(map),
                });
            }
        }
        Ok(Contents {
            inner: Inner::File(file),
            len,
        })
    }

    /// Contents that are in memory already.
    pub(crate) fn from_vec(bytes: Vec<u8>) -> Contents {
        Contents {
            len: bytes.len() as u64,
            inner: Inner::Owned(bytes),
        }
    }

    /// The range of the mapping, or `None` when the contents are not mapped
    /// or the range is not inside.
    pub(crate) fn borrowed(&self, at: u64, len: u64) -> Option<&[u8]> {
        let all: &[u8] = match &self.inner {
            Inner::Mapped(map) => map,
            Inner::Owned(bytes) => bytes,
            Inner::File(_) => return None,
        };
        let start = usize::try_from(at).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        all.get(start..end)
    }

    /// `len` bytes at `at`; an error when the file does not have them all.
    pub(crate) fn read(&self, at: u64, len: u64) -> io::Result<Cow<'_, [u8]>> {
        let end = at.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        if end > self.len || len > MAX_COPY {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(bytes) = self.borrowed(at, len) {
            return Ok(Cow::Borrowed(bytes));
        }
        let Inner::File(file) = &self.inner else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut out = Vec::new();
        out.try_reserve_exact(len)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        out.resize(len, 0);
        file.read_exact_at(&mut out, at)?;
        Ok(Cow::Owned(out))
    }

    /// CRC-32 of the whole contents, as `.gnu_debuglink` records it.
    pub(crate) fn crc32(&self) -> io::Result<u32> {
        const STEP: u64 = 1 << 20;
        let mut crc = flate2::Crc::new();
        let mut at = 0;
        while at < self.len {
            let step = STEP.min(self.len - at);
            crc.update(&self.read(at, step)?);
            at += step;
        }
        Ok(crc.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn ranges_outside_are_errors() {
        let c = Contents::from_vec(b"123456789".to_vec());
        assert_eq!(&*c.read(2, 3).unwrap(), b"345");
        assert!(c.read(7, 3).is_err());
        assert!(c.read(u64::MAX, 2).is_err());
        assert_eq!(c.crc32().unwrap(), 0xcbf4_3926);
    }

    #[test]
    fn a_file_cut_after_opening_is_an_error_not_a_signal() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mut perms = file.metadata().unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut perms, 0o666);
        file.set_permissions(perms).unwrap();
        let contents = Contents::new(file.try_clone().unwrap()).unwrap();
        file.set_len(100).unwrap();
        assert!(contents.read(4096, 31).is_err());
        assert_eq!(&*contents.read(3, 2).unwrap(), &[7, 7]);
    }
}
