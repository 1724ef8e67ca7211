//! The program on disk: where `PATH` finds it, and whether the loader will
//! let the recorder in.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use leakscope_model::Notice;
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::options::{RunError, RunErrorKind};

/// Where execvp(3) looks when `PATH` is not set (glibc's confstr _CS_PATH).
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// Interpreters of interpreters that the kernel follows (`bprm` rewrites).
const MAX_INTERPRETERS: usize = 5;
/// Bytes of a file that are looked at: the kernel wants program headers in
/// the first page; linkers put them there too.
const HEAD: u64 = 65536;

/// Finds the program as execvp(3) does.
///
/// # Errors
/// Not found (127), or only found where it cannot be executed (126).
pub(crate) fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, RunError> {
    let shown = name.to_string_lossy();
    if name.is_empty() {
        return Err(not_found("the program's name is empty".to_owned()));
    }
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return match executable(&file) {
            Ok(()) => Ok(file),
            Err(error) => Err(refusal(&file, &error)),
        };
    }
    let dirs = path.map_or(DEFAULT_PATH, OsStr::as_bytes);
    let mut refused = None;
    for dir in dirs.split(|&b| b == b':') {
        let mut file = if dir.is_empty() {
            b".".to_vec()
        } else {
            dir.to_vec()
        };
        file.push(b'/');
        file.extend_from_slice(name.as_bytes());
        let file = PathBuf::from(OsString::from_vec(file));
        match executable(&file) {
            Ok(()) => return Ok(file),
            Err(error) if error == Errno::ACCESS || error == Errno::ISDIR => {
                refused.get_or_insert((file, error));
            }
            Err(_) => {}
        }
    }
    match refused {
        Some((file, error)) => Err(refusal(&file, &error)),
        None => Err(not_found(format!("`{shown}` was not found in PATH"))),
    }
}

fn executable(file: &Path) -> Result<(), Errno> {
    access(file, Access::EXEC_OK)?;
    let meta =
        std::fs::metadata(file).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    if meta.is_dir() {
        return Err(Errno::ISDIR);
    }
    if meta.is_file() {
        Ok(())
    } else {
        Err(Errno::ACCESS)
    }
}

fn not_found(text: String) -> RunError {
    RunError {
        kind: RunErrorKind::NotFound,
        text,
    }
}

fn refusal(file: &Path, error: &Errno) -> RunError {
    let file = file.display();
    let (kind, text) = match *error {
        Errno::NOENT | Errno::NOTDIR => {
            (RunErrorKind::NotFound, format!("`{file}` does not exist"))
        }
        Errno::ISDIR => (
            RunErrorKind::NotExecutable,
            format!("`{file}` is a directory"),
        ),
        Errno::ACCESS => (
            RunErrorKind::NotExecutable,
            format!("`{file}` may not be executed (permission denied; see `ls -l`)"),
        ),
        other => (
            RunErrorKind::NotExecutable,
            format!("`{file}` cannot be executed: {}", io::Error::from(other)),
        ),
    };
    RunError { kind, text }
}

/// What starting `file` failed with, as a refusal.
pub(crate) fn start_refusal(file: &Path, error: &io::Error) -> RunError {
    let shown = file.display();
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    let text = match errno {
        Errno::NOENT if file.exists() => match interpreter_of(file) {
            Some(interpreter) => format!(
                "`{shown}` cannot be executed: its interpreter `{}` does not exist",
                interpreter.display()
            ),
            None => format!("`{shown}` cannot be executed: its interpreter does not exist"),
        },
        Errno::NOEXEC => {
            format!("`{shown}` cannot be executed: not a program of a kind this machine can run")
        }
        _ => return refusal(file, &errno),
    };
    RunError {
        kind: RunErrorKind::NotExecutable,
        text,
    }
}

/// True when execvp(3) would hand the file to `/bin/sh`: a text without an
/// interpreter line.
pub(crate) fn is_plain_script(file: &Path) -> bool {
    let Ok(head) = head(file) else { return false };
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    // The test that shells make before they interpret a file.
    !head.starts_with(b"\x7fELF") && !line.contains(&0)
}

fn interpreter_of(file: &Path) -> Option<PathBuf> {
    let head = head(file).ok()?;
    match Kind::of(&head) {
        Kind::Script(next) => Some(next),
        Kind::Elf(elf) => elf.interpreter,
        Kind::Other => None,
    }
}

fn head(file: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(file)?.take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// Why the recorder will not be loaded into the program, if that can be told
/// beforehand. At most one reason: the first that applies.
pub(crate) fn obstacle(file: &Path) -> Option<Notice> {
    let mut file = file.to_owned();
    for _ in 0..MAX_INTERPRETERS {
        let head = head(&file).ok()?;
        match Kind::of(&head) {
            Kind::Script(next) => file = next,
            Kind::Elf(elf) => return elf.obstacle(&file),
            Kind::Other => return None,
        }
    }
    None
}

enum Kind {
    Script(PathBuf),
    Elf(Elf),
    Other,
}

impl Kind {
    fn of(head: &[u8]) -> Kind {
        if let Some(rest) = head.strip_prefix(b"#!") {
            // #! /path/of/interpreter one argument
            let line = rest.split(|&b| b == b'\n').next().unwrap_or_default();
            let line = line.trim_ascii_start();
            let end = line.iter().position(|b| matches!(b, b' ' | b'\t' | 0));
            let path = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
            if path.is_empty() {
                return Kind::Other;
            }
            return Kind::Script(PathBuf::from(OsStr::from_bytes(path)));
        }
        Elf::parse(head).map_or(Kind::Other, Kind::Elf)
    }
}

/// What an executable's first page says.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    /// 64-bit, little-endian, x86-64.
    native: bool,
    /// Path of the dynamic loader; static executables have none.
    interpreter: Option<PathBuf>,
}

impl Elf {
    fn parse(head: &[u8]) -> Option<Elf> {
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        // Elf64_Ehdr: class at 4, data at 5, machine at 18, program headers'
        // offset at 32, their size at 54 and number at 56.
        let native = head.get(4) == Some(&2) && head.get(5) == Some(&1) && half(head, 18)? == 62;
        let mut interpreter = None;
        if native {
            let (at, size, count) = (word(head, 32)?, half(head, 54)?, half(head, 56)?);
            for i in 0..u64::from(count) {
                let row = at.checked_add(i.checked_mul(u64::from(size))?)?;
                // Elf64_Phdr: type at 0, file offset at 8, file size at 32.
                const PT_INTERP: u32 = 3;
                let Some(kind) = quarter(head, row) else {
                    break;
                };
                if kind == PT_INTERP {
                    let start = word(head, row.checked_add(8)?)?;
                    let len = word(head, row.checked_add(32)?)?;
                    let end = usize::try_from(start.checked_add(len)?).ok()?;
                    let name = head.get(usize::try_from(start).ok()?..end);
                    let name = name.unwrap_or(b"?");
                    let name = name.split(|&b| b == 0).next().unwrap_or_default();
                    interpreter = Some(PathBuf::from(OsStr::from_bytes(name)));
                }
            }
        }
        Some(Elf {
            native,
            interpreter,
        })
    }

    fn obstacle(&self, file: &Path) -> Option<Notice> {
        let shown = file.display();
        if !self.native {
            return Some(Notice {
                code: "foreign-machine",
                message: format!(
                    "{shown} is not a 64-bit x86 executable, so the recorder cannot be loaded into it"
                ),
            });
        }
        if self.interpreter.is_none() && !is_loader(file) {
            return Some(Notice {
                code: "static-executable",
                message: format!(
                    "{shown} is statically linked, so no recorder can be loaded into it; \
                     use `leakscope check PID` while it runs, or start it with `leakscope run` \
                     directly"
                ),
            });
        }
        elevated(file).map(|how| Notice {
            code: "setuid-program",
            message: format!(
                "{shown} {how}, so the loader ignores LD_PRELOAD; run it as its owner, or use \
                 `leakscope check PID` as root while it runs"
            ),
        })
    }
}

/// True when nothing changes for the program if it is traced from its first
/// instruction: the kernel gives no other user's rights to whom somebody
/// traces.
pub(crate) fn may_be_traced(file: &Path) -> bool {
    elevated(file).is_none()
}

/// What is said of a program that was looked at instead of recorded.
pub(crate) fn looked_at(file: &Path) -> Notice {
    Notice {
        code: "static-executable",
        message: format!(
            "{} is statically linked, so no recorder can be loaded into it: its heap was walked \
             when it was about to end, which tells kinds and types, but no call stacks",
            file.display()
        ),
    }
}

/// Longest table of dynamic symbols or their names that is read, bytes.
const LONGEST_TABLE: u64 = 64 << 20;

/// True when the executable brings a malloc that other objects see: the
/// loader prefers it to ours. False for anything that is not understood.
pub(crate) fn brings_malloc(file: &File) -> bool {
    defines(file, b"malloc").unwrap_or(false)
}

fn defines(file: &File, name: &[u8]) -> Option<bool> {
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len.min(LONGEST_TABLE)).ok()?];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    };
    let head = read(0, 64)?;
    if !Elf::parse(&head).is_some_and(|elf| elf.native) {
        return None;
    }
    // Elf64_Ehdr: section headers' offset at 40, their size at 58 and number
    // at 60. Elf64_Shdr: type at 4, offset at 24, size at 32, link at 40.
    let (at, size, count) = (word(&head, 40)?, half(&head, 58)?, half(&head, 60)?);
    let section = |i: u32| read(at.checked_add(u64::from(i) * u64::from(size))?, 64);
    const SHT_DYNSYM: u32 = 11;
    for i in 0..u32::from(count) {
        let row = section(i)?;
        if quarter(&row, 4)? != SHT_DYNSYM {
            continue;
        }
        let symbols = read(word(&row, 24)?, word(&row, 32)?)?;
        let strings = section(quarter(&row, 40)?)?;
        let strings = read(word(&strings, 24)?, word(&strings, 32)?)?;
        // Elf64_Sym: name at 0, section at 6 (0: defined elsewhere).
        return Some(symbols.chunks_exact(24).any(|symbol| {
            let text = quarter(symbol, 0).and_then(|at| strings.get(at as usize..));
            let text = text.and_then(|text| text.split(|&b| b == 0).next());
            text == Some(name) && half(symbol, 6) != Some(0)
        }));
    }
    Some(false)
}

/// The dynamic loader has no interpreter, yet honours LD_PRELOAD for the
/// program that it is told to run.
fn is_loader(file: &Path) -> bool {
    let name = file.file_name().map(OsStr::as_bytes).unwrap_or_default();
    name.starts_with(b"ld-linux") || name.starts_with(b"ld.so") || name.starts_with(b"ld-2.")
}

/// How executing `file` raises privileges, if it does for this user.
fn elevated(file: &Path) -> Option<&'static str> {
    let meta = std::fs::metadata(file).ok()?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    if meta.mode() & 0o4000 != 0 && meta.uid() != uid.as_raw() {
        return Some("is set-user-id");
    }
    if meta.mode() & 0o2010 == 0o2010 && meta.gid() != gid.as_raw() {
        return Some("is set-group-id");
    }
    let mut value = [0u8; 64];
    let capabilities = rustix::fs::getxattr(file, c"security.capability", &mut value);
    (capabilities.is_ok() && !uid.is_root()).then_some("has file capabilities")
}

fn bytes<const N: usize>(head: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    head.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(head: &[u8], at: u64) -> Option<u16> {
    bytes(head, at).map(u16::from_le_bytes)
}

fn quarter(head: &[u8], at: u64) -> Option<u32> {
    bytes(head, at).map(u32::from_le_bytes)
}

fn word(head: &[u8], at: u64) -> Option<u64> {
    bytes(head, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn elf(machine: u16, program_headers: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = vec![0u8; 64];
        out[..6].copy_from_slice(b"\x7fELF\x02\x01");
        out[18..20].copy_from_slice(&machine.to_le_bytes());
        out[32..40].copy_from_slice(&64u64.to_le_bytes());
        out[54..56].copy_from_slice(&56u16.to_le_bytes());
        out[56..58].copy_from_slice(&(program_headers.len() as u16).to_le_bytes());
        let mut data_at = 64 + 56 * program_headers.len() as u64;
        let mut tail = Vec::new();
        for (kind, data) in program_headers {
            let mut row = [0u8; 56];
            row[..4].copy_from_slice(&kind.to_le_bytes());
            row[8..16].copy_from_slice(&data_at.to_le_bytes());
            row[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
            out.extend_from_slice(&row);
            tail.extend_from_slice(data);
            data_at += data.len() as u64;
        }
        out.extend(tail);
        out
    }

    fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn searches_path_like_execvp() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir_all(a.join("tool")).unwrap();
        std::fs::create_dir_all(&b).unwrap();
        write(&b, "tool", b"x", 0o755);
        write(&a, "plain", b"x", 0o644);
        let path = OsString::from(format!("{}::{}", a.display(), b.display()));
        let found = |name: &str| find(OsStr::new(name), Some(&path));
        assert_eq!(found("tool").unwrap(), b.join("tool"));
        assert_eq!(
            found("plain").unwrap_err().kind,
            RunErrorKind::NotExecutable
        );
        assert_eq!(found("missing").unwrap_err().kind, RunErrorKind::NotFound);
        assert_eq!(found("").unwrap_err().kind, RunErrorKind::NotFound);
        assert_eq!(found("/no/such").unwrap_err().kind, RunErrorKind::NotFound);
        let direct = a.join("tool");
        let error = find(direct.as_os_str(), Some(&path)).unwrap_err();
        assert_eq!(error.kind, RunErrorKind::NotExecutable);
    }

    #[test]
    fn sees_what_keeps_the_recorder_out() {
        let dir = tempfile::tempdir().unwrap();
        let code = |name: &str, bytes: &[u8]| {
            obstacle(&write(dir.path(), name, bytes, 0o755)).map(|n| n.code)
        };
        let dynamic = elf(62, &[(6, b""), (3, b"/lib64/ld.so\0")]);
        assert_eq!(code("dynamic", &dynamic), None);
        assert_eq!(
            code("static", &elf(62, &[(1, b"")])),
            Some("static-executable")
        );
        assert_eq!(code("ld-linux-x86-64.so.2", &elf(62, &[(1, b"")])), None);
        assert_eq!(code("arm", &elf(183, &[])), Some("foreign-machine"));
        assert_eq!(code("cut", b"\x7fELF\x02\x01"), None);
        assert_eq!(code("text", b"echo"), None);
        let script = format!("#! {}/static -x\n", dir.path().display());
        assert_eq!(code("script", script.as_bytes()), Some("static-executable"));
        let own = format!("#!{}/own\n", dir.path().display());
        assert_eq!(code("own", own.as_bytes()), None);
    }

    #[test]
    fn knows_who_brings_malloc() {
        let dir = tempfile::tempdir().unwrap();
        let mut object = elf(62, &[]);
        object[40..48].copy_from_slice(&64u64.to_le_bytes());
        object[58..60].copy_from_slice(&64u16.to_le_bytes());
        object[60..62].copy_from_slice(&2u16.to_le_bytes());
        let section = |kind: u32, at: u64, len: u64, link: u32| {
            let mut row = [0u8; 64];
            row[4..8].copy_from_slice(&kind.to_le_bytes());
            row[24..32].copy_from_slice(&at.to_le_bytes());
            row[32..40].copy_from_slice(&len.to_le_bytes());
            row[40..44].copy_from_slice(&link.to_le_bytes());
            row
        };
        object.extend(section(11, 192, 48, 1));
        object.extend(section(3, 240, 13, 0));
        let free = [1u8, 0, 0, 0, 0, 0, 7, 0];
        let malloc = [6u8, 0, 0, 0, 0, 0, 7, 0];
        for symbol in [free, malloc] {
            object.extend(symbol);
            object.extend([0u8; 16]);
        }
        object.extend(b"\0free\0malloc\0");
        let check = |bytes: &[u8]| {
            let file = write(dir.path(), "object", bytes, 0o644);
            brings_malloc(&File::open(file).unwrap())
        };
        assert!(check(&object));
        object[192 + 24 + 6] = 0;
        assert!(!check(&object));
        object[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(!check(&object));
        assert!(!check(b"text"));
    }

    #[test]
    fn a_hostile_header_is_bounded() {
        let mut head = elf(62, &[(3, b"/x\0")]);
        head[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Elf::parse(&head).unwrap().interpreter, None);
        let mut head = elf(62, &[(3, b"/x\0")]);
        head[72..80].copy_from_slice(&(u64::MAX - 1).to_le_bytes());
        assert_eq!(Elf::parse(&head), None);
        head[72..80].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(Elf::parse(&head).unwrap().interpreter.is_some());
    }
}
