//! `/proc/PID/maps`: the map of an address space.

use crate::error::ProcError;
use crate::number::{cut, decimal, hex};
use leakscope_memory::{MemoryMap, Region};
use leakscope_model::{Addr, Range};

/// A map and how many lines could not be understood.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// What was understood.
    pub map: MemoryMap,
    /// Lines left out.
    pub skipped: usize,
}

/// Understands every line of the file, or names the first that it cannot.
///
/// # Errors
/// Malformed: the missing component and the line.
pub fn parse(text: &[u8]) -> Result<MemoryMap, ProcError> {
    let regions: Result<Vec<Region>, ProcError> = lines(text).map(parse_line).collect();
    Ok(MemoryMap::new(regions?))
}

/// Understands what it can; the rest is counted.
pub fn parse_lenient(text: &[u8]) -> Maps {
    let mut skipped = 0;
    let regions = lines(text)
        .filter_map(|line| {
            let region = parse_line(line).ok();
            skipped += usize::from(region.is_none());
            region
        })
        .collect();
    Maps {
        map: MemoryMap::new(regions),
        skipped,
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// Understands one line, without its line end.
///
/// # Errors
/// Malformed: the missing component and the line.
pub fn parse_line(line: &[u8]) -> Result<Region, ProcError> {
    // 7f0c1a200000-7f0c1a228000 r--p 00000000 fe:01 1573093      /usr/lib/x.so
    // start        end          perm offset   dev   inode        path
    //
    // The path is absent for anonymous memory, padded with blanks, and goes
    // to the end of the line: it may itself contain blanks.
    let missing = |component| move || ProcError::malformed(component, line);
    let mut rest = line;

    let start = cut(&mut rest, b'-').and_then(hex);
    let start = start.ok_or_else(missing("start address"))?;
    let end = cut(&mut rest, b' ').and_then(hex);
    let end = end
        .filter(|&end| end >= start)
        .ok_or_else(missing("end address"))?;

    let permissions = cut(&mut rest, b' ').ok_or_else(missing("permissions"))?;
    let &[r, w, x, s] = permissions else {
        return Err(missing("permissions")());
    };
    if !matches!(
        (r, w, x, s),
        (b'r' | b'-', b'w' | b'-', b'x' | b'-', b's' | b'p')
    ) {
        return Err(missing("permissions")());
    }

    let offset = cut(&mut rest, b' ').and_then(hex);
    let offset = offset.ok_or_else(missing("offset"))?;
    let device = cut(&mut rest, b' ').and_then(device);
    let device = device.ok_or_else(missing("device"))?;

    // Without a path the line may end right behind the inode.
    let inode = match cut(&mut rest, b' ') {
        Some(inode) => inode,
        None => std::mem::take(&mut rest),
    };
    let inode = decimal(inode).ok_or_else(missing("inode"))?;
    let blanks = rest.iter().take_while(|b| matches!(b, b' ' | b'\t'));
    let path = rest.get(blanks.count()..).unwrap_or_default();

    Ok(Region {
        range: Range {
            start: Addr(start),
            end: Addr(end),
        },
        read: r == b'r',
        write: w == b'w',
        exec: x == b'x',
        shared: s == b's',
        offset,
        device,
        inode,
        path: unescape(path),
    })
}

fn device(text: &[u8]) -> Option<(u32, u32)> {
    let mut minor = text;
    let major = cut(&mut minor, b':')?;
    Some((hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?))
}

/// Puts line ends back into a path. The kernel writes them as `\012` and
/// leaves every other byte alone, backslashes too (`seq_path` with the
/// escape set "\n"), so nothing else may be decoded here.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(line: &[u8]) -> Vec<u8> {
        parse_line(line).map(|r| r.path).unwrap_or_default()
    }

    #[test]
    fn an_ordinary_line() {
        let line = b"7f0c1a228000-7f0c1a37d000 r-xp 00028000 fe:01 1573093                    /usr/lib/x86_64-linux-gnu/libc.so.6";
        let region = parse_line(line).unwrap();
        assert_eq!(
            region,
            Region {
                range: Range::new(0x7f0c_1a22_8000, 0x7f0c_1a37_d000),
                read: true,
                write: false,
                exec: true,
                shared: false,
                offset: 0x28000,
                device: (0xfe, 1),
                inode: 1573093,
                path: b"/usr/lib/x86_64-linux-gnu/libc.so.6".to_vec(),
            }
        );
    }

    #[test]
    fn paths_are_any_bytes() {
        let head = "1000-2000 rw-s 00000000 00:01 4 ";
        for (path, want) in [
            ("/memfd:x (deleted)", "/memfd:x (deleted)"),
            ("/a b/(c) d ", "/a b/(c) d "),
            ("[anon:my heap]", "[anon:my heap]"),
            ("[heap]", "[heap]"),
            ("/two\\012lines", "/two\nlines"),
            ("/back\\slash\\040", "/back\\slash\\040"),
            ("(unreachable)/x", "(unreachable)/x"),
            ("", ""),
        ] {
            let line = format!("{head}       {path}");
            assert_eq!(path_of(line.as_bytes()), want.as_bytes());
        }
        let mut line = head.as_bytes().to_vec();
        line.extend_from_slice(b"/\xff\xfe\x01");
        assert_eq!(path_of(&line), b"/\xff\xfe\x01");
    }

    #[test]
    fn anonymous_and_huge() {
        let region = parse_line(b"1000-2000 ---p 00000000 00:00 0").unwrap();
        assert!(region.path.is_empty() && !region.read && region.is_anonymous());
        let region = parse_line(
            b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
        )
        .unwrap();
        assert_eq!(region.range.start, Addr(0xffff_ffff_ff60_0000));
        assert_eq!(region.path, b"[vsyscall]");
        // 20 bits of minor number, 12 of major.
        let region = parse_line(b"1000-2000 r--p 00000000 fff:fffff 7").unwrap();
        assert_eq!(region.device, (0xfff, 0xf_ffff));
    }

    #[test]
    fn each_missing_component_is_named() {
        for (line, component) in [
            ("", "start address"),
            ("1000", "start address"),
            ("x-2000 r--p 0 0:0 0", "start address"),
            ("10000000000000000-2000 r--p 0 0:0 0", "start address"),
            ("1000-", "end address"),
            ("1000-2000", "end address"),
            ("2000-1000 r--p 0 0:0 0", "end address"),
            ("1000-2000 r--", "permissions"),
            ("1000-2000 r-- 0 0:0 0", "permissions"),
            ("1000-2000 rrrr 0 0:0 0", "permissions"),
            ("1000-2000 r--p 0", "offset"),
            ("1000-2000 r--p 0 00:", "device"),
            ("1000-2000 r--p 0 0000 0", "device"),
            ("1000-2000 r--p 0 00:00 ", "inode"),
            ("1000-2000 r--p 0 00:00 7z /x", "inode"),
        ] {
            let error = parse_line(line.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Malformed);
            assert_eq!(
                error.to_string(),
                format!("find the {component} in \"{line}\"")
            );
        }
    }

    #[test]
    fn strict_refuses_what_lenient_counts() {
        let text = b"1000-2000 r--p 0 00:00 0\nnonsense\n3000-4000 r--p 0 00:00 0\n5000-60";
        assert!(parse(text).is_err());
        let maps = parse_lenient(text);
        assert_eq!((maps.map.regions().len(), maps.skipped), (2, 2));
    }
}
