//! Module look-up for C libraries without `_dl_find_object` (glibc before
//! 2.35, musl): by `/proc/self/maps`.

use crate::{modules, sys};

/// Where the module begins whose mapping contains `pc`: the lowest mapping
/// of the same file, without a gap of other files.
pub fn module_start(pc: u64) -> Option<u64> {
    if !modules::old_libc_may_search() {
        return None;
    }
    let fd = sys::open(b"/proc/self/maps\0")?;
    let mut buffer = [0u8; 4096];
    let mut line = [0u8; 256];
    let mut line_len = 0;
    let mut run: (u64, u64, u64) = (0, 0, 0);
    let mut found = None;
    let mut at = 0;
    'read: loop {
        let n = sys::pread(fd, &mut buffer, at);
        if n == 0 {
            break;
        }
        at += n as u64;
        for byte in buffer.iter().take(n) {
            if *byte != b'\n' {
                if let Some(slot) = line.get_mut(line_len) {
                    *slot = *byte;
                    line_len += 1;
                }
                continue;
            }
            let text = line.get(..line_len).unwrap_or(&[]);
            line_len = 0;
            let Some((start, end, inode)) = parse(text) else {
                continue;
            };
            if inode != 0 && inode != run.2 {
                run = (start, end, inode);
            }
            if (start..end).contains(&pc) {
                found = (inode != 0).then_some(run.0);
                break 'read;
            }
        }
    }
    sys::close(fd);
    found
}

/// Start, end and inode of a line (Documentation/filesystems/proc.rst).
fn parse(line: &[u8]) -> Option<(u64, u64, u64)> {
    let mut fields = line.split(|b| *b == b' ').filter(|f| !f.is_empty());
    let mut range = fields.next()?.split(|b| *b == b'-');
    let start = number(range.next()?, 16)?;
    let end = number(range.next()?, 16)?;
    let inode = number(fields.nth(3)?, 10)?;
    Some((start, end, inode))
}

fn number(digits: &[u8], base: u64) -> Option<u64> {
    digits.iter().try_fold(0u64, |sum, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        sum.checked_mul(base)?.checked_add(u64::from(value))
    })
}
