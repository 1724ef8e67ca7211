//! Compressed core files, as systemd-coredump and administrators keep them.
//!
//! They are unpacked into a file without a name, so nothing stays behind
//! however we end, and never into memory. Who made the file decides how much
//! comes out: at most half of what the disk has free, and pages of zeros take
//! no room.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use leakscope_model::quantity;
use rustix::fs::{CWD, Mode, OFlags, openat, statvfs};

/// How it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Gzip,
    Xz,
    Zstd,
}

/// A core file as it was, and what is wrong with the compressed one.
pub(super) struct Unpacked {
    pub file: File,
    /// Where and why unpacking ended early.
    pub damage: Option<String>,
}

/// Unpacked at a time; zeros are left out by so many bytes.
const PIECE: usize = 64 << 10;
/// What xz may take for its dictionary, KiB: more than any of its presets.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// More than any process can have.
const MOST: u64 = 1 << 44;

/// The file itself if it is not compressed.
///
/// # Errors
/// One clause: it is compressed in a way that is not known, or there is no room.
pub(super) fn unpacked(file: File, began: &mut dyn FnMut()) -> Result<Unpacked, String> {
    let Some(method) = method(&file)? else {
        return Ok(Unpacked { file, damage: None });
    };
    began();
    let folder = scratch();
    let shown = folder.display();
    let no_room = |e: io::Error| {
        format!(
            "it is compressed, and it cannot be unpacked in {shown} ({e}): name another folder \
             with TMPDIR, or unpack it yourself"
        )
    };
    let into = nameless(&folder).map_err(no_room)?;
    let free = statvfs(&folder).map_err(|e| no_room(e.into()))?;
    let room = free.f_bavail.saturating_mul(free.f_frsize) / 2;
    unpack(file, method, into, room).map_err(|e| {
        if e.kind() == io::ErrorKind::StorageFull {
            format!(
                "it is compressed, and {shown} has no room for it: half of what is free there is \
                 {}, and it needs more; name another folder with TMPDIR",
                quantity::bytes(room)
            )
        } else {
            no_room(e)
        }
    })
}

fn method(file: &File) -> Result<Option<Method>, String> {
    use std::os::unix::fs::FileExt;
    let mut head = [0; 6];
    let read = file.read_at(&mut head, 0).map_err(|e| e.to_string())?;
    let head = head.get(..read).unwrap_or_default();
    if head.starts_with(b"\x04\x22\x4d\x18") || head.starts_with(b"BZh") {
        return Err("it is compressed: unpack it first (lz4 -d or bunzip2)".to_owned());
    }
    Ok(match head {
        [0x1f, 0x8b, ..] => Some(Method::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Method::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Method::Xz),
        _ => None,
    })
}

/// Where large temporary files go (file-hierarchy(7)): `/tmp` may be memory.
fn scratch() -> PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty());
    let usual = Path::new("/var/tmp");
    match named {
        Some(dir) => dir.into(),
        None if usual.is_dir() => usual.to_owned(),
        None => std::env::temp_dir(),
    }
}

/// A file without a name in `folder`, for us alone.
fn nameless(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => return Ok(file.into()),
        // File systems without it, and kernels that take it for a folder.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {}
        Err(e) => return Err(e.into()),
    }
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..16 {
        let path = folder.join(format!(".leakscope-{}-{attempt}", std::process::id()));
        let mut options = OpenOptions::new();
        match options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Unpacks at most `room` bytes that are not zeros.
fn unpack(packed: File, method: Method, mut into: File, room: u64) -> io::Result<Unpacked> {
    let packed = BufReader::with_capacity(PIECE, packed);
    let mut stream: Box<dyn Read> = match method {
        Method::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Method::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            packed,
            true,
            XZ_MEMORY_KIB,
        )),
        Method::Zstd => Box::new(Frames {
            packed: Some(packed),
            frame: None,
        }),
    };
    let (mut length, mut written) = (0u64, 0u64);
    let mut piece = vec![0; PIECE];
    let damage = loop {
        let (got, damage) = fill(&mut stream, &mut piece);
        let bytes = piece.get(..got).unwrap_or_default();
        length += got as u64;
        if bytes.iter().any(|b| *b != 0) {
            written += got as u64;
            if written > room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            into.write_all(bytes)?;
        } else {
            into.seek(SeekFrom::Current(got as i64))?;
        }
        if damage.is_some() || got < PIECE || length > MOST {
            break damage;
        }
    };
    into.set_len(length)?;
    Ok(Unpacked {
        file: into,
        damage: damage.map(|e| format!("after {} ({e})", quantity::bytes(length))),
    })
}

/// Reads until `piece` is full or the stream ends, or breaks off.
fn fill(stream: &mut dyn Read, piece: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut got = 0;
    loop {
        let rest = piece.get_mut(got..).unwrap_or_default();
        if rest.is_empty() {
            return (got, None);
        }
        match stream.read(rest) {
            Ok(0) => return (got, None),
            Ok(more) => got += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (got, Some(e)),
        }
    }
}

type ZstdFrame =
    ruzstd::decoding::StreamingDecoder<BufReader<File>, ruzstd::decoding::FrameDecoder>;

/// A zstd file: frames, one behind the other.
struct Frames {
    packed: Option<BufReader<File>>,
    frame: Option<ZstdFrame>,
}

impl Read for Frames {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(frame) = &mut self.frame {
                let got = frame.read(into)?;
                if got > 0 {
                    return Ok(got);
                }
                self.packed = self.frame.take().map(ZstdFrame::into_inner);
            }
            let Some(mut packed) = self.packed.take() else {
                return Ok(0);
            };
            use std::io::BufRead;
            if packed.fill_buf()?.is_empty() {
                return Ok(0);
            }
            // Bounds the window by itself: 128 MiB.
            let frame = ZstdFrame::new(packed);
            self.frame = Some(frame.map_err(|e| io::Error::other(e.to_string()))?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Something, much of nothing, something, and an odd end.
    fn plain() -> Vec<u8> {
        let mut plain: Vec<u8> = (0..70_001u32).map(|i| (i * 7 % 251) as u8).collect();
        plain.resize(900_001, 0);
        plain.extend(b"the end");
        plain.resize(plain.len() + 70_003, 0);
        plain
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(plain).unwrap();
        out.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(plain, level)
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn run(packed: &[u8], room: u64) -> io::Result<(Vec<u8>, Option<String>)> {
        let packed = file(packed);
        let method = method(&packed).unwrap().unwrap();
        let out = unpack(packed, method, tempfile::tempfile().unwrap(), room)?;
        let len = out.file.metadata()?.len();
        let mut bytes = vec![0; len as usize];
        out.file.read_exact_at(&mut bytes, 0)?;
        Ok((bytes, out.damage))
    }

    #[test]
    fn what_was_packed_comes_out() {
        let plain = plain();
        let (one, two) = plain.split_at(123_457);
        for packed in [
            gzip(&plain),
            zstd(&plain),
            // Several members or frames.
            [gzip(one), gzip(two)].concat(),
            [zstd(one), zstd(two)].concat(),
        ] {
            let (bytes, damage) = run(&packed, 1 << 20).unwrap();
            assert!(bytes == plain && damage.is_none(), "{damage:?}");
        }
    }

    #[test]
    fn a_cut_file_gives_what_it_has() {
        let plain: Vec<u8> = (0..500_009u64)
            .map(|i| (i * i % 251 + i % 13) as u8)
            .collect();
        for packed in [gzip(&plain), zstd(&plain)] {
            let half = packed.len() / 2;
            let (bytes, damage) = run(&packed[..half], 1 << 20).unwrap();
            assert!(damage.unwrap().starts_with("after "));
            assert!(plain.starts_with(&bytes));
            // A zstd decoder keeps what later bytes may repeat.
            assert!(!bytes.is_empty() || packed.starts_with(b"\x28"));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_room_there_is() {
        let bomb = gzip(&vec![1; 5_000_011]);
        assert!(bomb.len() < 50_000);
        let error = run(&bomb, 1_000_003).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // Zeros take none.
        assert_eq!(
            run(&gzip(&vec![0; 5_000_011]), 0).unwrap().0.len(),
            5_000_011
        );
    }

    #[test]
    fn garbage_behind_a_signature() {
        for head in [&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"] {
            let bytes = [head, &[0x5a; 3001]].concat();
            let (out, damage) = run(&bytes, 1 << 20).unwrap();
            assert!(damage.is_some(), "{} bytes", out.len());
        }
        assert!(method(&file(b"\x04\x22\x4d\x18 lz4")).is_err());
        assert_eq!(method(&file(b"\x7fELF")).unwrap(), None);
    }

    #[test]
    fn the_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = nameless(folder.path()).unwrap();
        file.write_at(b"x", 0).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(nameless(Path::new("/no/such/folder")).is_err());
    }
}
